"""Random operations.

Core ML's generators are not documented, so that only the distribution can be reproduced, never Apple's numbers: a
parity check of a program that samples has to compare without these operations. With a seed of 0 or more, an operation
here gives the same numbers at every call (numpy's PCG64; numpy may change what it draws from it between versions).
With a negative seed (MIL's default, -1) every call differs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..registry import op


def _generator(seed: Any) -> np.random.Generator:
    return np.random.default_rng(int(seed) if int(seed) >= 0 else None)


def _dims(shape: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in np.asarray(shape).reshape(-1))


@op("random_bernoulli")
def random_bernoulli(shape: Any, prob: float = 0.5, seed: int = -1) -> np.ndarray:
    """1 with probability `prob`, else 0."""
    return (_generator(seed).random(_dims(shape), np.float32) < prob).astype(np.float32)


@op("random_normal")
def random_normal(shape: Any, mean: float = 0.0, stddev: float = 1.0, seed: int = -1) -> np.ndarray:
    """Gaussian numbers."""
    drawn = _generator(seed).standard_normal(_dims(shape), np.float32)
    return drawn * np.float32(stddev) + np.float32(mean)


@op("random_uniform")
def random_uniform(shape: Any, low: float = 0.0, high: float = 1.0, seed: int = -1) -> np.ndarray:
    """Numbers of [low, high). Rounding to a declared fp16 can give `high` itself."""
    bottom, top = np.float32(low), np.float32(high)
    drawn = _generator(seed).random(_dims(shape), np.float32)
    return np.minimum(drawn * (top - bottom) + bottom, np.nextafter(top, bottom))


@op("random_categorical")
def random_categorical(x: np.ndarray, mode: str = "logits", size: int = 1, seed: int = -1) -> np.ndarray:
    """`size` class indices per row of `x` [..., classes], drawn with replacement; "probs" need not add up to 1."""
    rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    if mode == "logits":
        weights = np.exp(rows - rows.max(axis=-1, keepdims=True))
    elif mode == "probs":
        weights = rows
    else:
        raise ValueError(f'mode must be "logits" or "probs", got "{mode}"')
    edges = np.cumsum(weights, axis=-1)
    edges /= edges[:, -1:]
    draws = _generator(seed).random((len(rows), int(size)))
    picked = np.stack([np.searchsorted(edge, draw, side="right") for edge, draw in zip(edges, draws, strict=True)])
    return picked.astype(np.float32).reshape(*x.shape[:-1], int(size))
