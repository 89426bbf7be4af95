"""Normalizations: batch_norm, instance_norm, l2_norm, layer_norm, local_response_norm.

Statistics are taken in fp32 over fp32 differences from the mean (two passes), as coremltools' own value inference
does; what an Apple device does with fp16 inputs is not documented.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..registry import op


def _per_channel(values: Any, rank: int) -> np.ndarray:
    """A vector over channels (axis 1 of `rank`) in a shape that broadcasts."""
    return np.reshape(values, (-1, *[1] * (rank - 2))).astype(np.float32, copy=False)


@op("batch_norm")
def batch_norm(
    x: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    epsilon: float = 1e-5,
) -> np.ndarray:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, per channel (axis 1)."""
    scale = np.float32(1) / np.sqrt(np.asarray(variance, np.float32) + np.float32(epsilon))
    if gamma is not None:
        scale = scale * np.reshape(gamma, -1)
    result = np.subtract(x, _per_channel(mean, x.ndim), dtype=np.float32)
    result *= _per_channel(scale, x.ndim)
    if beta is not None:
        result += _per_channel(beta, x.ndim)
    return result


@op("instance_norm")
def instance_norm(
    x: np.ndarray, gamma: np.ndarray | None = None, beta: np.ndarray | None = None, epsilon: float = 1e-5
) -> np.ndarray:
    """Each channel of each sample to mean 0 and variance 1 over its spatial dimensions, then gamma and beta."""
    result = _standardized(x, tuple(range(2, x.ndim)), epsilon)
    if gamma is not None:
        result *= _per_channel(gamma, x.ndim)
    if beta is not None:
        result += _per_channel(beta, x.ndim)
    return result


@op("l2_norm")
def l2_norm(x: np.ndarray, epsilon: float = 1e-6) -> np.ndarray:
    """x / sqrt(sum of squares + epsilon) over the last three dimensions."""
    total = np.square(x, dtype=np.float32).sum(axis=(-3, -2, -1), keepdims=True)
    return x / np.sqrt(total + np.float32(epsilon))


@op("layer_norm")
def layer_norm(
    x: np.ndarray,
    axes: Any = None,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    epsilon: float = 1e-5,
) -> np.ndarray:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta over `axes` (all when omitted).

    gamma and beta have the shape of the normalized dimensions in the order of `x`, whatever the order of `axes`.
    """
    listed = range(x.ndim) if axes is None else np.asarray(axes).reshape(-1)
    normalized = tuple(sorted({int(a) % x.ndim for a in listed}))
    result = _standardized(x, normalized, epsilon)
    shape = [n if axis in normalized else 1 for axis, n in enumerate(x.shape)]
    if gamma is not None:
        result *= np.reshape(gamma, shape)
    if beta is not None:
        result += np.reshape(beta, shape)
    return result


def _standardized(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + epsilon) over `axes`, a new fp32 array."""
    if axes == (x.ndim - 1,):  # the usual case in transformers: both sums by BLAS-like kernels, no array of squares
        count = np.float32(max(1, x.shape[-1]))
        total = np.matmul(x, np.ones(x.shape[-1], np.float32), dtype=np.float32)
        result = np.subtract(x, (total / count)[..., None], dtype=np.float32)
        variance = (np.einsum("...i,...i->...", result, result) / count)[..., None]
    else:
        result = np.subtract(x, x.mean(axis=axes, keepdims=True, dtype=np.float32), dtype=np.float32)
        variance = np.square(result).mean(axis=axes, keepdims=True)
    result *= np.float32(1) / np.sqrt(variance + np.float32(epsilon))
    return result


@op("local_response_norm")
def local_response_norm(
    x: np.ndarray, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> np.ndarray:
    """x / (k + alpha / size * sum of squares of `size` neighbouring channels) ** beta.

    Neighbours of channel c are c - size // 2 up to c + (size - 1) // 2, absent ones count as zero: PyTorch's rule,
    with which coremltools' tests compare; Apple does not say where the odd one of an even size lies.
    """
    size = int(size)
    squares = np.square(x, dtype=np.float32)
    channels = x.shape[1]
    total = np.zeros_like(squares)
    for shift in range(-(size // 2), (size - 1) // 2 + 1):
        low, high = max(0, -shift), channels - max(0, shift)
        if low < high:
            total[:, low:high] += squares[:, low + shift : high + shift]
    total *= np.float32(alpha) / np.float32(size)
    total += np.float32(k)
    return x / np.power(total, np.float32(beta), out=total)
