"""What models are fed, by kind: text, images, sound, and combinations of them.

Which kinds a model takes is read off the parameters of its `forward` and what its task allows; an architecture needs no
entry anywhere.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...runtime.errors import RequestError
from ...runtime.golden import GoldenCase
from ...runtime.manifest import TensorSpec, TokenizerSpec

if TYPE_CHECKING:
    from ..reference import Reference
    from ..source import Source

Feeds = dict[str, Any]
Batches = list[tuple[str, Feeds]]


def _no_lines(lines: Sequence[Any]) -> Batches:
    raise RequestError("--inputs takes texts, and this model takes none.")


@dataclass(frozen=True)
class Inputs:
    """What a model is fed.

    specs: names, dtypes and axes. example: what it is traced with, at least two rows.
    batches: realistic inputs by name of the case, none of them the example, several sizes where sizes vary.
    golden: the bundle's golden vectors, with the reference's outputs.
    calibration: inputs of one row to quantize with, from a file of the user's or palmtop's own.
    lines: the user's own texts (or pairs) as batches.
    preprocess: the manifest's field. write: writes what an app needs for it into a bundle (the tokenizer's folder).
    notes: what the user should know.
    """

    specs: tuple[TensorSpec, ...]
    example: dict[str, torch.Tensor]
    batches: Callable[[], Batches]
    golden: Callable[[Reference], list[GoldenCase]]
    calibration: Callable[[Path | None], list[Feeds]]
    lines: Callable[[Sequence[Any]], Batches] = _no_lines
    preprocess: dict[str, Any] = field(default_factory=dict)
    write: Callable[[Path], TokenizerSpec | None] = lambda root: None
    notes: tuple[str, ...] = ()


# The parameters of a `forward` that say what kinds of input it takes.
KINDS: Mapping[str, frozenset[str]] = {
    "text": frozenset({"input_ids"}),
    "image": frozenset({"pixel_values", "flattened_patches"}),
    "audio": frozenset({"input_values", "input_features"}),
}

# The module here, and the function in it, that makes the inputs of a model of these kinds.
_MAKERS: Mapping[frozenset[str], tuple[str, str]] = {
    frozenset({"text"}): ("text", "text_inputs"),
    frozenset({"image"}): ("image", "image_inputs"),
    frozenset({"audio"}): ("audio", "audio_inputs"),
    frozenset({"image", "text"}): ("image_text", "image_text_inputs"),
}


def parameters(model: type[torch.nn.Module] | torch.nn.Module) -> set[str]:
    """The names that a model's `forward` takes."""
    return set(inspect.signature(model.forward).parameters)


def kinds(takes: set[str], allowed: frozenset[str]) -> frozenset[str]:
    """Of the kinds that a task allows those that a model with these parameters takes."""
    return frozenset(kind for kind, names in KINDS.items() if kind in allowed and names & takes)


def make_inputs(
    source: Source, model: torch.nn.Module, max_length: int | None = None, lengths: Sequence[int] | None = None
) -> Inputs:
    """What a checkpoint's model is fed. `max_length` and `lengths` are in tokens, for models that take text.

    Raises:
        RequestError: a kind of input that palmtop does not make, or lengths that the model does not take.
        UnsupportedError: the checkpoint's own processing cannot be expressed without Python.
    """
    takes = parameters(model)
    found = kinds(takes, source.task.kinds)
    if found not in _MAKERS:
        raise RequestError(
            f"{type(model).__name__} takes {', '.join(sorted(takes))}; palmtop feeds "
            f"{' or '.join(sorted(source.task.kinds))} to a model for {source.task.name}."
        )
    module, function = _MAKERS[found]
    maker = getattr(importlib.import_module(f".{module}", __name__), function)
    return maker(source, model, takes, max_length, lengths)
