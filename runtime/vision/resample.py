"""Resampling of real-valued maps, in numpy: pictures in float, logits of segmentation, depths.

Weights and grids are those of `torch.nn.functional.interpolate` with `align_corners=False`.
"""

from __future__ import annotations

import numpy as np


def antialiased(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(..., H, W) to (..., height, width): bilinear, with a filter that widens where the map shrinks."""
    down, across = _triangle(values.shape[-2], height), _triangle(values.shape[-1], width)
    return np.matmul(down, np.matmul(values, across.T))


def bilinear(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(..., H, W) to (..., height, width): between the two nearest, no antialiasing."""
    return _apply(values, _linear(values.shape[-2], height), _linear(values.shape[-1], width))


def bicubic(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(..., H, W) to (..., height, width): Keys' cubic with a = -0.75, no antialiasing."""
    return _apply(values, _cubic(values.shape[-2], height), _cubic(values.shape[-1], width))


Weights = tuple[np.ndarray, np.ndarray]  # for each place of the result: positions (n, taps), weights (n, taps)


def _apply(values: np.ndarray, down: Weights, across: Weights) -> np.ndarray:
    rows, shares = across
    wide = sum(values[..., rows[:, tap]] * shares[:, tap] for tap in range(rows.shape[1]))
    rows, shares = down
    return sum(wide[..., rows[:, tap], :] * shares[:, tap, None] for tap in range(rows.shape[1]))  # type: ignore


def _linear(size: int, wanted: int) -> Weights:
    place = np.maximum((np.arange(wanted, dtype=np.float32) + 0.5) * np.float32(size / wanted) - 0.5, 0)
    low = np.minimum(place.astype(np.int64), size - 1)
    share = (place - low).astype(np.float32)
    return np.stack([low, np.minimum(low + 1, size - 1)], 1), np.stack([1 - share, share], 1)


def _cubic(size: int, wanted: int) -> Weights:
    place = (np.arange(wanted, dtype=np.float32) + 0.5) * np.float32(size / wanted) - 0.5
    low = np.floor(place).astype(np.int64)
    t = (place - low).astype(np.float32)
    a = np.float32(-0.75)

    def near(x: np.ndarray) -> np.ndarray:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: np.ndarray) -> np.ndarray:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    shares = np.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], 1)
    return np.clip(low[:, None] + np.arange(-1, 3), 0, size - 1), shares


def _triangle(size: int, wanted: int) -> np.ndarray:
    """(wanted, size) float32: each row the weights of a triangle filter, widened by the scale when it shrinks."""
    scale = size / wanted
    reach = max(scale, 1.0)
    center = scale * (np.arange(wanted) + 0.5)
    low = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    high = np.minimum((center + reach + 0.5).astype(np.int64), size)
    positions = np.arange(size)
    weights = np.maximum(1 - np.abs(positions + 0.5 - center[:, None]) / reach, 0)
    weights *= (positions >= low[:, None]) & (positions < high[:, None])
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
