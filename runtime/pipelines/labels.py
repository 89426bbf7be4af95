"""Classes with their scores, as models of texts, pictures and sounds give them alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..results import Label
from .base import Pipeline, choice, whole
from .maths import ACTIVATIONS, best


def label_reader(
    pipeline: Pipeline, top_k: int | None, function_to_apply: str | None
) -> Callable[[dict[str, Any], Any], list[Label]]:
    """Makes labels, best first, of the `logits` of one input.

    Args:
        top_k: how many; None: all of them.
        function_to_apply: `softmax`, `sigmoid` or `none`; None does what the checkpoint was trained for.

    Raises:
        RequestError: an option that does not exist.
    """
    top_k = whole("top_k", top_k)
    name = function_to_apply or pipeline.manifest.postprocess.get("activation", "softmax")
    activation = ACTIVATIONS[choice("function_to_apply", name, ACTIVATIONS)]
    labels = pipeline.id2label

    def read(outputs: dict[str, Any], _: Any) -> list[Label]:
        scores = activation(outputs["logits"])
        return [Label(labels[index], float(scores[index])) for index in best(scores, top_k)]

    return read
