"""What a bench feeds: rows of exactly so many tokens, and calls of a pipeline, both from a bundle's golden vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .bundle import Bundle
from .errors import RequestError
from .golden import GoldenCase
from .manifest import Artifact, Dim
from .pipelines import PIPELINES

# Measured without --lengths, where the artifact takes them.
_USUAL_LENGTHS = (16, 64, 128)
# Texts of the throughput measurement.
_MOST_TEXTS = 20


def lengths_of(artifact: Artifact, asked: Sequence[int] | None) -> tuple[int | None, ...]:
    """The lengths to measure an artifact at; (None,) for a model without text.

    Raises:
        RequestError: a length was asked for that the artifact does not take.
    """
    axis = _length_axis(artifact)
    if axis is None:
        if asked:
            raise RequestError(f"--lengths: {artifact.path} takes no text. Leave the option out.")
        return (None,)
    for length in asked or ():
        if not axis.admits(length):
            raise RequestError(f"--lengths {length}: {artifact.path} takes {axis} tokens. Give lengths that it takes.")
    if asked:
        return tuple(sorted(set(asked)))
    if axis.values is not None:
        return axis.values
    return tuple(n for n in _USUAL_LENGTHS if axis.admits(n)) or (axis.largest or axis.min,)


def _length_axis(artifact: Artifact) -> Dim | None:
    return next((spec.dims[-1] for spec in artifact.inputs if spec.name == "input_ids"), None)


def feeds_of_length(golden: Sequence[GoldenCase], length: int | None) -> dict[str, np.ndarray]:
    """One row of exactly that many tokens: the longest golden text, cut or repeated between its two ends."""
    if length is None:
        return golden[0].feeds()
    whole = [case for case in golden if np.all(case.encoding.get("attention_mask", np.ones(1)) != 0)] or list(golden)
    longest = max(whole, key=lambda case: case.encoding["input_ids"].shape[-1])
    size = longest.encoding["input_ids"].shape[-1]
    inner = 1 + np.arange(max(length - 2, 0)) % max(size - 2, 1)
    places = np.concatenate([[0], inner, [size - 1]])[:length] if length > 1 else np.array([0])
    return {name: array[..., places] for name, array in longest.feeds().items()}


def example_calls(bundle: Bundle, golden: Sequence[GoldenCase]) -> list[Any]:
    """What a pipeline of this bundle can be called with: texts, pairs or choices of the golden vectors."""
    if bundle.manifest.tokenizer is None or bundle.manifest.task not in PIPELINES:
        return []
    task, mask = bundle.manifest.task, bundle.manifest.tokenizer.special_tokens.get("mask")
    found: list[Any] = []
    for case in golden:
        if not case.text or case.options.get("pad_to"):
            continue
        if task == "question-answering":
            found += [{"question": case.text, "context": case.text_pair}] if case.text_pair else []
        elif task == "multiple-choice":
            found += [{"prompt": case.text, "choices": list(case.choices)}] if case.choices else []
        elif case.text_pair is None and (task != "fill-mask" or (mask is not None and case.text.count(mask) == 1)):
            found.append(case.text)
    return found[:_MOST_TEXTS]
