"""How a model that generates is exported: what it is held to, what is captured, and what its runtime must know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...runtime.assembly import COMPARED
from ...runtime.errors import RequestError, UnsupportedError
from ...runtime.golden import DECODER_IDS
from ..inputs import Inputs, make_inputs
from ..inputs.generation import prompt_inputs, with_decoder
from ..reference import Call
from ..running import running
from ..source import Source
from ..subject import STATIC, Part
from .decoder import TOKENS, Decoder, NoCache
from .encoder_decoder import EncoderDecoder
from .languages import languages_of
from .uncached import Uncached

# A decoder's context where neither the user nor the model says.
_USUAL_CONTEXT = 448
# A decoder alone is tried on so many tokens to find out how it wants to be called.
_LEAST_CONTEXT = 8


def is_encoder_decoder(model: torch.nn.Module) -> bool:
    """Whether a model reads with an encoder and says with a decoder."""
    return bool(model.config.is_encoder_decoder)


def generation_inputs(
    source: Source, model: torch.nn.Module, max_length: int | None, lengths: Sequence[int] | None
) -> Inputs:
    """What the model is fed as a whole. Errors as in `make_inputs`, and UnsupportedError for a decoder that sees."""
    if not is_encoder_decoder(model):
        _refuse_unseen(source, model)
        inputs = prompt_inputs(source, model, max_length, lengths)
        context = context_of(model, inputs)
        if context < _LEAST_CONTEXT:
            raise RequestError(
                f"Text is generated within at least {_LEAST_CONTEXT} tokens, and {source.id} would have {context}. "
                "Remedy: a longer --max-length, up to the positions that the model has."
            )
        return inputs
    base = make_inputs(source, model, max_length, lengths)
    return with_decoder(base, source, first_token(model), context_of(model, base))


def _refuse_unseen(source: Source, model: torch.nn.Module) -> None:
    """A decoder alone is given text alone: one that should see or hear would do neither, and still say something."""
    if "text" not in source.task.kinds:
        raise UnsupportedError(
            f"{type(model).__name__} reads {' and '.join(sorted(source.task.kinds))} and text with one decoder; for "
            f"{source.task.name} palmtop exports models of an encoder and a decoder.\n"
            "Remedy: --task text-generation for its text alone, where transformers has such a model of this type; or "
            "export the part that sees or hears by itself (palmtop.export.export_module)."
        )


@dataclass(frozen=True)
class Route:
    """How a model is exported to generate.

    Attributes:
        whole: the logits at the last positions, without a cache: what the stepping of artifacts is compared with.
        parts: what is captured, by how a cache is kept.
        notes: what its user should know.
    options: what `model.generate` must be told to generate in the same way.
    """

    whole: Call
    parts: Callable[[str], tuple[Part, ...]]
    notes: tuple[str, ...] = ()
    options: dict[str, bool] = field(default_factory=dict)


def route_of(model: torch.nn.Module, inputs: Inputs) -> Route:
    """An encoder and a decoder, a decoder alone, or one that has no cache."""
    context = context_of(model, inputs)
    if is_encoder_decoder(model):
        specs = tuple(spec for spec in inputs.specs if spec.name != DECODER_IDS)
        example = {spec.name: _rows(inputs.example[spec.name]) for spec in specs}
        start = first_token(model)
        with running(model, example):
            both = EncoderDecoder(model, specs, example, start)
        return Route(
            _at_once,
            lambda cache: (both.encoder(), both.fixed(context) if cache == STATIC else both.growing(context)),
        )
    try:
        with running(model, [TOKENS]):
            alone = Decoder(model)
    except NoCache:
        with running(model, [TOKENS]):
            uncached = Uncached(model)
        note = f"{type(model).__name__} keeps no keys and values: for each token the whole sequence is run again."
        return Route(uncached.whole, lambda cache: (uncached.part(context),), (note,), uncached.options)
    return Route(_at_once, lambda cache: (alone.fixed(context) if cache == STATIC else alone.growing(context),))


def _at_once(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    result = model(**inputs, use_cache=False, return_dict=True)
    return [result.logits[:, -COMPARED:]]


def _rows(value: torch.Tensor) -> torch.Tensor:
    """An axis that has one row in the example would be taken for a constant."""
    return value if len(value) > 1 else value.repeat(2, *[1] * (value.dim() - 1))


def context_of(model: torch.nn.Module, inputs: Inputs) -> int:
    """How many tokens the decoder holds: as the inputs of a decoder alone say, else as the model has positions."""
    if not is_encoder_decoder(model):
        largest = inputs.specs[0].dims[-1].largest
        return largest or _USUAL_CONTEXT
    config = getattr(model.config, "decoder", None) or model.config.get_text_config(decoder=True)
    limits = [
        getattr(config, name, None) for name in ("max_target_positions", "max_position_embeddings", "n_positions")
    ]
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    return min([*known[:1], _USUAL_CONTEXT])


def first_token(model: torch.nn.Module) -> int:
    """The id that a decoder begins with. Raises RequestError when the checkpoint does not say."""
    for config in (model.generation_config, model.config, getattr(model.config, "decoder", None)):
        for name in ("decoder_start_token_id", "bos_token_id"):
            found = getattr(config, name, None)
            if isinstance(found, (list, tuple)) and found:
                found = found[0]
            if isinstance(found, int):
                return found
    raise RequestError(
        "The checkpoint does not say which token its decoder begins with. "
        "Remedy: set decoder_start_token_id in its generation_config.json."
    )


def generation_settings(source: Source, model: torch.nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The manifest's `generation`: what the checkpoint's generation config says, and how much fits."""
    said = {key: value for key, value in model.generation_config.to_diff_dict().items() if _plain(value)}
    for name in ("transformers_version", "_from_model_config"):
        said.pop(name, None)
    if is_encoder_decoder(model):
        said["decoder_start_token_id"] = first_token(model)
    specific = getattr(source.config, "task_specific_params", None)
    return {
        **said,
        "context": context_of(model, inputs),
        **({"task_specific_params": specific} if specific and _plain(specific) else {}),
        **languages_of(source.slow_tokenizer or source.tokenizer),
    }


def _plain(value: Any) -> bool:
    """Whether a value is what JSON can hold."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(entry) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))
