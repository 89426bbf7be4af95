"""Folders that are no checkpoint palmtop can export: each is refused with what it is, and what to do."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from ..runtime.errors import DamagedError, RequestError, UnsupportedError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "tf_model.h5", "flax_model.msgpack")
_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What packed weights are stored as; a model's own tables of positions are 64-bit integers.
_PACKED = ("I8", "U8", "I16", "I32", "F8_")


def refuse_folder(folder: Path, name: str) -> None:
    """Look at what files a folder has, before any is read.

    Raises:
        RequestError: it is no checkpoint, has no weights, or is an adapter of another one.
        DamagedError: its weights are pickles.
    """
    weights = [path.name for path in folder.glob("*.safetensors")]
    if _ADAPTER_WEIGHTS in weights or ((folder / _ADAPTER).is_file() and not weights):
        raise RequestError(
            f"{name} is an adapter{_adapted(folder)}, not a model. Remedy: merge the two and save the result: "
            "AutoPeftModel.from_pretrained(folder).merge_and_unload().save_pretrained(merged), its tokenizer beside it."
        )
    if not (folder / "config.json").is_file():
        hint = ""
        if (folder / "manifest.json").is_file():
            hint = " This is a palmtop bundle: use palmtop verify, run or inspect with it."
        raise RequestError(f"{name} has no config.json, so it is not a Hugging Face checkpoint.{hint}")
    if weights:
        return
    refuse_pickles(name, [path.name for path in folder.iterdir()])
    raise RequestError(f"{name} has no weights: no .safetensors file beside its config.json.")


def refuse_pickles(name: str, files: Sequence[str]) -> None:
    """Raises DamagedError where weights are among these files as pickles."""
    pickles = sorted(file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in _PICKLES))
    if pickles:
        raise DamagedError(
            f"{name} has its weights only as {', '.join(pickles)}, which may run code when read. palmtop reads "
            "safetensors alone. Remedy: load it where you trust it and save it again: "
            "AutoModel.from_pretrained(folder).save_pretrained(folder)."
        )


def refuse_quantized(config: PretrainedConfig, folder: Path, name: str) -> None:
    """Weights that were packed by another quantizer have no place in formats that hold palmtop's own integers.

    A config that still says so of weights that were unpacked since (an adapter was merged) loses the remark.

    Raises:
        UnsupportedError: some weights are packed.
    """
    said = getattr(config, "quantization_config", None)
    if said is None:
        return
    method = said.get("quant_method") if isinstance(said, dict) else None
    if any(kind.startswith(_PACKED) for kind in _kinds_of_weights(folder, name)):
        raise UnsupportedError(
            f"The weights of {name} are quantized already{f' ({method})' if method else ''}.\n"
            "Remedy: export the checkpoint that it was made from, with --quantize; or unpack it where it runs: "
            "model.dequantize().save_pretrained(folder)."
        )
    del config.quantization_config


def _kinds_of_weights(folder: Path, name: str) -> Iterator[str]:
    """The dtypes of all tensors of two axes or more, as safetensors calls them."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118  (it is no dict)
                    tensor = file.get_slice(key)
                    if len(tensor.get_shape()) > 1:
                        yield str(tensor.get_dtype())
        except SafetensorError as error:
            raise DamagedError(f"The weights of {name} cannot be loaded: {path.name}: {error}") from error


def _adapted(folder: Path) -> str:
    """Of which model a folder is an adapter, where it says so."""
    try:
        said = json.loads((folder / _ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return ""
    return f" of {said}" if isinstance(said, str) and said else ""
