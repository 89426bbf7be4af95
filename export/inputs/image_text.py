"""Pictures beside texts, for models of two towers: labels in words against what is seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...runtime.errors import RequestError
from ...runtime.golden import GoldenCase
from ...runtime.manifest import Dim, TensorSpec, TokenizerSpec
from ..reference import Reference
from ..running import running
from ..source import Source
from ..texts import SENTENCES
from ..tokenizer import carry_tokenizer, check_tokenizer, prove_tokenizer, tokenizer_inputs
from . import Batches, Feeds, Inputs
from .image import PictureInputs, calibration_pictures, picture_inputs
from .pictures import photo, photos
from .text import TextInputs

# How many texts run together at most; more are run in turn.
_MOST_TEXTS = 32
_LABELS = (
    "This is a photo of a mountain under a clear sky.",
    "This is a photo of two cats.",
    "This is a photo of a red bus on a wet street at night.",
    "a diagram",
    "This is a photo of une tasse de café.",
)
# A change of padding that moves the outputs by more than this share of them is seen by the model.
_SEEN = 1e-3


def image_text_inputs(
    source: Source,
    model: torch.nn.Module,
    takes: set[str],
    max_length: int | None = None,
    lengths: Sequence[int] | None = None,
) -> Inputs:
    """What a model is fed that takes pictures and texts, each tower on its own.

    Args:
        takes: the names of the parameters of its `forward`.
        max_length: longest text in tokens that was asked for; None: what the model takes.
        lengths: the enumerated lengths that were asked for.

    Raises:
        RequestError: the model cannot take texts that long.
        UnsupportedError: the checkpoint's image processor cannot be expressed in steps.
    """
    longest = _longest(source, max(lengths) if lengths else max_length)
    made = picture_inputs(source, model, takes)
    names = tokenizer_inputs(source, takes)
    texts = TextInputs(source, names, longest)
    pad_to = longest if sees_padding(model, made, texts) else None

    def feeds(pictures: Sequence[Any], labels: Sequence[str]) -> Feeds:
        return {**made.feeds(pictures), **texts.feeds(labels, pad_to=pad_to)}

    def batches() -> Batches:
        return [
            ("picture and labels", feeds([photo(1, 150, 200)], _LABELS)),
            *((f"photo {index}", feeds([photos()[index]], SENTENCES[index : index + 3])) for index in range(3)),
            ("one label", feeds([photos()[3]], _LABELS[2:3])),
            ("two pictures", feeds(photos()[4:6], _LABELS[1:4])),
        ]

    def golden(reference: Reference) -> list[GoldenCase]:
        labels = texts.feeds(_LABELS[:3], pad_to=pad_to)
        return [
            made.golden(reference, f"picture {index} and labels", picture, path, labels)
            for index, (path, picture) in enumerate(made.golden_files().items(), start=1)
        ]

    def write(root: Path) -> TokenizerSpec:
        made.write(root)
        spec = carry_tokenizer(source, root, names, longest)
        check_tokenizer(source, root / spec.path, SENTENCES)
        prove_tokenizer(source, root / spec.path, spec)
        return spec

    sequence = Dim(size=pad_to) if pad_to is not None else Dim(symbol="sequence", min=1, max=longest)
    several = Dim(symbol="texts", min=1, max=_MOST_TEXTS)
    example = feeds(photos()[:2], _LABELS[:3])
    return Inputs(
        specs=(*made.specs(), *(TensorSpec(name, "int64", (several, sequence)) for name in names)),
        example={name: torch.from_numpy(array) for name, array in example.items()},
        batches=batches,
        golden=golden,
        calibration=lambda path: [
            feeds([picture], _LABELS[index % len(_LABELS) :][:1])
            for index, picture in enumerate(calibration_pictures(path))
        ],
        preprocess={**made.preprocess(), **({"text": {"pad_to": pad_to}} if pad_to is not None else {})},
        write=write,
        notes=made.notes,
    )


def sees_padding(model: torch.nn.Module, made: PictureInputs, texts: TextInputs) -> bool:
    """Whether texts that are padded give other results: such a model was trained on texts of one length."""
    if texts.max_length < 8:
        return False
    picture = made.feeds([photo(1, 60, 80)])
    results = []
    for pad_to in (None, texts.max_length):
        inputs = {**picture, **texts.feeds(["a diagram"], pad_to=pad_to)}
        with torch.no_grad(), running(model, inputs):
            result = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}, return_dict=True)
        results.append(np.concatenate([value.numpy().reshape(-1) for value in _vectors(result)]))
    return bool(np.abs(results[0] - results[1]).max() > _SEEN * np.abs(results[0]).max())


def _vectors(result: Any) -> list[torch.Tensor]:
    """What does not depend on how many tokens there are."""
    names = ("text_embeds", "logits_per_image")
    found = [result[name] for name in names if isinstance(result.get(name), torch.Tensor)]
    if not found:
        raise RequestError(f"The model gives neither of {', '.join(names)}, but {', '.join(result)}.")
    return found


def _longest(source: Source, asked: int | None) -> int:
    positions = getattr(source.config.get_text_config(), "max_position_embeddings", None)
    stated = source.tokenizer.model_max_length
    limits = [limit for limit in (positions, stated if stated < 1_000_000 else None) if limit]
    most = min(limits, default=64)
    if asked is not None and positions and asked > positions:
        raise RequestError(f"{source.id} takes at most {positions} tokens; {asked} were asked for.")
    return asked or most
