"""Pooling: avg_pool, l2_pool, max_pool over 1 to 3 spatial dimensions.

A window is reduced one dimension at a time, which gives the same maximum and, up to rounding, the same sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..registry import op
from .windows import integers, padded, padding


@op("max_pool", exact=True)
def max_pool(
    x: np.ndarray,
    kernel_sizes: Any,
    pad_type: str,
    *,
    strides: Any = None,
    pad: Any = None,
    ceil_mode: bool = False,
) -> np.ndarray:
    """The maximum of each window; padding is -inf, so that it never wins."""
    kernel, step, pads, sizes = _geometry(x, kernel_sizes, pad_type, strides, pad, bool(ceil_mode))
    return _reduce(np.maximum, padded(x, pads, -np.inf), kernel, step, sizes)


@op("avg_pool")
def avg_pool(
    x: np.ndarray,
    kernel_sizes: Any,
    pad_type: str,
    *,
    strides: Any = None,
    pad: Any = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> np.ndarray:
    """The mean of each window, padding counted as zeros or left out.

    What `ceil_mode` adds beyond the declared padding never counts ("same as PyTorch's ceil mode"). A window without
    a single counted element gives 0.
    """
    kernel, step, pads, sizes = _geometry(x, kernel_sizes, pad_type, strides, pad, bool(ceil_mode))
    total = _reduce(np.add, padded(x, pads), kernel, step, sizes)
    counted = [(0, 0)] * len(kernel)
    if not exclude_padding_from_average:
        counted = _declared(pad_type, pad, x, kernel, step)
    for axis, (n, k, s, (before, _), (low, high), size) in enumerate(
        zip(x.shape[2:], kernel, step, pads, counted, sizes, strict=True), start=2
    ):
        start = np.arange(size) * s - before
        count = np.minimum(start + k, n + high) - np.maximum(start, -low)
        shape = [1] * x.ndim
        shape[axis] = size
        total /= np.maximum(count, 1).astype(np.float32).reshape(shape)
    return total


@op("l2_pool")
def l2_pool(
    x: np.ndarray,
    kernel_sizes: Any,
    pad_type: str,
    *,
    strides: Any = None,
    pad: Any = None,
    ceil_mode: bool = False,
) -> np.ndarray:
    """The square root of the sum of squares of each window."""
    kernel, step, pads, sizes = _geometry(x, kernel_sizes, pad_type, strides, pad, bool(ceil_mode))
    total = _reduce(np.add, padded(np.square(x), pads), kernel, step, sizes)
    return np.sqrt(total, out=total)


def _declared(pad_type: str, pad: Any, x: np.ndarray, kernel: list[int], step: list[int]) -> list[tuple[int, int]]:
    return padding(pad_type, pad, x.shape[2:], kernel, step)


def _geometry(
    x: np.ndarray, kernel_sizes: Any, pad_type: str, strides: Any, pad: Any, ceil_mode: bool
) -> tuple[list[int], list[int], list[tuple[int, int]], list[int]]:
    """Kernel, strides, padding (with what ceil_mode adds at the end) and output sizes.

    Sizes are those of coremltools' `spatial_dimensions_out_shape`: with ceil_mode, a last window that starts beyond
    the input is dropped, but only when there is padding.
    """
    rank = x.ndim - 2
    kernel, step = integers(kernel_sizes, rank, 1), integers(strides, rank, 1)
    pads, sizes = [], []
    for n, k, s, (before, after) in zip(
        x.shape[2:], kernel, step, _declared(pad_type, pad, x, kernel, step), strict=True
    ):
        size = (n + before + after - k + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (before or after) and (size - 1) * s >= n + before:
            size -= 1
        if size < 1:
            raise ValueError(f"a window of {k} does not fit {n} elements padded by {before} and {after}")
        sizes.append(size)
        pads.append((before, max(after, (size - 1) * s + k - n - before)))
    return kernel, step, pads, sizes


def _reduce(
    join: Callable[..., np.ndarray], x: np.ndarray, kernel: list[int], step: list[int], sizes: list[int]
) -> np.ndarray:
    """Reduce windows of padded `x` by `join` (np.add or np.maximum), the last dimension first."""
    for axis in range(x.ndim - 1, 1, -1):
        k, s, size = kernel[axis - 2], step[axis - 2], sizes[axis - 2]
        if size == 1:  # global pooling: let numpy add pairwise
            x = join.reduce(x[(slice(None),) * axis + (slice(0, k),)], axis=axis, keepdims=True)  # type: ignore[attr-defined]
            continue
        ahead = (slice(None),) * axis
        part = [x[(*ahead, slice(i, i + (size - 1) * s + 1, s))] for i in range(k)]
        result = join(part[0], part[1]) if k > 1 else part[0].copy()
        for other in part[2:]:
            join(result, other, out=result)
        x = result
    return x
