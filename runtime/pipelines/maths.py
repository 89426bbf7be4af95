"""The few functions that turn logits into scores, in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """Probabilities along an axis; stable for large logits."""
    shifted = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Independent probabilities; stable for large logits of either sign."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": lambda logits: logits,
}


def best(scores: np.ndarray, count: int | None = None) -> list[int]:
    """Positions of the largest scores, best first, the earlier one of equals first; None: all of them."""
    if count is None or count >= len(scores):
        return np.argsort(-scores, kind="stable").tolist()
    top = np.argpartition(-scores, count - 1)[:count]
    threshold = scores[top].min()
    # argpartition takes any of the equals at the threshold; take the earliest.
    candidates = np.flatnonzero(scores >= threshold)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count].tolist()
