"""sentence-transformers folders: the modules after the encoder, as one PyTorch module.

A folder lists its modules in `modules.json`: the encoder, then pooling and, maybe, dense layers and normalisation. They
become part of the captured graph, so the artifact gives the finished embedding and no app has to know its pooling.
Definitions follow sentence-transformers' own `Pooling`, `Dense` and `Normalize`; a test holds them to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import normalizers
from torch.nn import functional

from ..runtime.errors import DamagedError, UnsupportedError

_Module = TypeVar("_Module", bound=torch.nn.Module)

# In the order in which sentence-transformers concatenates them.
_LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Tanh": torch.tanh,
    "Identity": lambda x: x,
    "ReLU": functional.relu,
    "GELU": functional.gelu,
    "Sigmoid": torch.sigmoid,
    "SiLU": functional.silu,
}


@dataclass(frozen=True)
class SentenceModules:
    """What comes after the encoder, and how text is prepared for it.

    `max_length` counts tokens with special ones; None: the tokenizer's own. `lowercase`: the tokenizer lower-cases
    (see `lower_casing`). `prompts` maps names to prefixes, `default_prompt` names the one that is put before a text
    unless another is asked for. `folders` hold the weights of the head.
    """

    head: torch.nn.Module
    pooling: str
    normalize: bool
    dimension: int | None
    max_length: int | None
    lowercase: bool
    prompts: dict[str, str]
    default_prompt: str | None
    folders: tuple[Path, ...] = ()


def read_sentence_modules(folder: Path) -> SentenceModules | None:
    """Read `modules.json` and what it names. None when the folder is not a sentence-transformers one.

    Raises:
        UnsupportedError: a module that palmtop does not express.
        DamagedError: a file that it names is missing or not valid.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return None
    entries = _json(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "type" in entry for entry in entries):
        raise DamagedError(f"{path.name} is not a list of sentence-transformers modules.")
    steps: list[torch.nn.Module] = []
    folders: list[Path] = []
    pooling, dimension = "", None
    for entry in entries:
        kind = str(entry["type"]).rpartition(".")[2]
        place = _inside(folder, str(entry.get("path", "")))
        if kind in ("Transformer", "Dropout"):
            continue
        if kind == "Pooling":
            config = _settings(place / "config.json")
            modes = _pooling_modes(config)
            if config.get("include_prompt", True) is False:
                raise UnsupportedError(
                    "This checkpoint leaves its prompt out of the pooling (include_prompt: false), which needs "
                    "the prompt's length as an input. Remedy: export from a copy without "
                    "modules.json, and pool in the app."
                )
            pooling = "+".join(modes)
            steps.append(Pooling(modes))
            width = config.get("embedding_dimension", config.get("word_embedding_dimension"))
            dimension = width * len(modes) if isinstance(width, int) else None
        elif kind == "Dense":
            dense = _built(_dense, place)
            steps.append(dense)
            folders.append(place)
            dimension = dense.linear.out_features
        elif kind == "Normalize":
            steps.append(Normalize())
        elif kind == "LayerNorm":
            steps.append(_built(_layer_norm, place))
            folders.append(place)
        else:
            raise UnsupportedError(
                f"The sentence-transformers module '{entry['type']}' cannot be expressed. Known: Transformer, Pooling, "
                "Dense, LayerNorm, Normalize, Dropout. Remedy: export the encoder alone, from a copy without "
                "modules.json."
            )
    if not pooling:
        raise UnsupportedError(
            "modules.json names no Pooling module, so there is no sentence embedding to make. "
            "Remedy: export the encoder alone, from a copy without modules.json."
        )
    settings: dict[str, Any] = next((_settings(p) for p in sorted(folder.glob("sentence_*_config.json"))), {})
    extras_path = folder / "config_sentence_transformers.json"
    extras = _settings(extras_path) if extras_path.is_file() else {}
    return SentenceModules(
        head=torch.nn.Sequential(*steps).eval().requires_grad_(False),
        pooling=pooling,
        normalize=any(isinstance(step, Normalize) for step in steps),
        dimension=dimension,
        max_length=settings.get("max_seq_length"),
        lowercase=bool(settings.get("do_lower_case", False)),
        prompts=dict(extras.get("prompts") or {}),
        default_prompt=extras.get("default_prompt_name"),
        folders=tuple(folders),
    )


class Pooling(torch.nn.Module):
    """Token states (B, S, H) and mask (B, S) to one vector (B, H * modes)."""

    def __init__(self, modes: tuple[str, ...]):
        super().__init__()
        self.modes = modes

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = mask.to(states.dtype)
        return torch.cat([_POOLINGS[mode](states, weights) for mode in self.modes], dim=-1)


class Normalize(torch.nn.Module):
    """Unit length (B, D)."""

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        return functional.normalize(vector, p=2, dim=-1)


class Dense(torch.nn.Module):
    """Linear layer and activation, with an optional residual."""

    def __init__(self, linear: torch.nn.Linear, activation: str, residual: torch.nn.Module | None):
        super().__init__()
        self.linear, self.activation, self.residual = linear, activation, residual

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        result = _ACTIVATIONS[self.activation](self.linear(vector))
        return result if self.residual is None else result + self.residual(vector)


def lower_casing(normalizer: normalizers.Normalizer | None) -> normalizers.Normalizer:
    """A tokenizer's normalizer with lower-casing before it, as sentence-transformers does for `do_lower_case`.

    It is part of the tokenizer, not of what comes before, so that special tokens written in a text stay what they are,
    and every reader of tokenizer.json does it alike (Python's `lower` knows final sigmas, others do not).
    """
    steps: list[normalizers.Normalizer] = []
    if isinstance(normalizer, normalizers.Sequence):
        steps += (normalizer[index] for index in range(len(normalizer)))
    elif normalizer is not None:
        steps.append(normalizer)
    if any(isinstance(step, normalizers.Lowercase) for step in steps):
        return normalizers.Sequence(steps)
    return normalizers.Sequence([normalizers.Lowercase(), *steps])


def embed(head: torch.nn.Module, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run the modules after the encoder: pooling takes the mask, the rest a vector."""
    vector = states
    for step in head.children():
        vector = step(vector, mask) if isinstance(step, Pooling) else step(vector)
    return vector


# A mask of real text is never empty, so the clamp at one token changes nothing; sentence-transformers' 1e-9 would be
# zero in fp16.
def _mean(states: torch.Tensor, mask: torch.Tensor, power: float = 1.0) -> torch.Tensor:
    total = (states * mask.unsqueeze(-1)).sum(dim=1)
    count = mask.sum(dim=1, keepdim=True).clamp(min=1.0)
    return total / (count if power == 1.0 else torch.sqrt(count))


def _first_position(mask: torch.Tensor) -> torch.Tensor:
    """One-hot (B, S) of the first token that is not padding, without data-dependent indexing."""
    return mask * (torch.cumsum(mask, dim=1) == 1).to(mask.dtype)


def _cls(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (states * _first_position(mask).unsqueeze(-1)).sum(dim=1)


def _last(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    from_end = mask.sum(dim=1, keepdim=True) - torch.cumsum(mask, dim=1)
    return (states * (mask * (from_end == 0).to(mask.dtype)).unsqueeze(-1)).sum(dim=1)


def _max(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states.masked_fill(mask.unsqueeze(-1) == 0, -30000.0).amax(dim=1)


def _weighted_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask * torch.cumsum(mask, dim=1)  # 1, 2, 3 ... over the tokens that are not padding
    total = (states * weights.unsqueeze(-1)).sum(dim=1)
    return total / weights.sum(dim=1, keepdim=True).clamp(min=1.0)


_POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": lambda states, mask: _mean(states, mask, power=0.5),
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


def _pooling_modes(config: dict[str, Any]) -> tuple[str, ...]:
    mode = config.get("pooling_mode")
    if mode is None:
        modes = tuple(name for key, name in _LEGACY_MODES.items() if config.get(key)) or ("mean",)
    else:
        modes = (mode,) if isinstance(mode, str) else tuple(mode)
    unknown = [name for name in modes if name not in _POOLINGS]
    if unknown:
        raise UnsupportedError(f"Unknown pooling {', '.join(unknown)}. Known: {', '.join(_POOLINGS)}.")
    return modes


def _built(build: Callable[[Path], _Module], folder: Path) -> _Module:
    """A module of its folder. Raises DamagedError when its settings or weights are not valid or do not fit."""
    try:
        return build(folder)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines() or [""]
        raise DamagedError(
            f"The module {folder.name} of this checkpoint is damaged: {type(error).__name__}: {first[0][:200]}"
        ) from error


def _dense(folder: Path) -> Dense:
    config, weights = _settings(folder / "config.json"), _weights(folder)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise UnsupportedError(
            f"The Dense module's activation '{config['activation_function']}' cannot be expressed. "
            f"Known: {', '.join(_ACTIVATIONS)}."
        )
    takes = config.get("module_input_name", "sentence_embedding")
    gives = config.get("module_output_name") or takes
    if (takes, gives) != ("sentence_embedding", "sentence_embedding"):
        raise UnsupportedError(
            f"A Dense module from '{takes}' to '{gives}' cannot be expressed; only one on the sentence embedding."
        )
    linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    residual: torch.nn.Module | None = None
    if config.get("use_residual"):
        residual = torch.nn.Identity()
        if config["in_features"] != config["out_features"]:
            residual = torch.nn.Linear(config["in_features"], config["out_features"], bias=False)
    dense = Dense(linear, activation, residual)
    dense.load_state_dict(weights)
    return dense


def _layer_norm(folder: Path) -> torch.nn.LayerNorm:
    config, weights = _settings(folder / "config.json"), _weights(folder)
    norm = torch.nn.LayerNorm(config["dimension"])
    norm.load_state_dict({key.removeprefix("norm."): value for key, value in weights.items()})
    return norm


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise DamagedError(
            f"{folder.name}/model.safetensors is missing. palmtop does not read pickles (pytorch_model.bin): "
            "save the checkpoint again with sentence-transformers, which writes safetensors."
        )
    return load_file(path)


def _inside(folder: Path, relative: str) -> Path:
    place = (folder / relative).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise DamagedError(f"modules.json points outside the checkpoint: '{relative}'.")
    return folder / relative


def _settings(path: Path) -> dict[str, Any]:
    settings = _json(path)
    if not isinstance(settings, dict):
        raise DamagedError(f"{path.parent.name}/{path.name} is not a JSON object.")
    return settings


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DamagedError(f"{path.parent.name}/{path.name} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DamagedError(f"{path.parent.name}/{path.name} is not valid JSON: {error}.") from error
