"""Quantizing and dequantizing activations. Definitions: coremltools' iOS17/quantization_ops.py."""

from __future__ import annotations

import numpy as np

from ..registry import op
from ..types import HELD


def along(parameter: np.ndarray, rank: int, axis: int | None) -> np.ndarray:
    """A scalar, or a vector shaped to broadcast along `axis` of a tensor of `rank`; as float32."""
    parameter = np.asarray(parameter, np.float32)
    if parameter.ndim == 0:
        return parameter
    if parameter.ndim != 1 or axis is None or not -rank <= axis < rank:
        raise ValueError(f"a parameter of shape {parameter.shape} cannot go along axis {axis} of rank {rank}")
    shape = [1] * rank
    shape[int(axis)] = parameter.size
    return parameter.reshape(shape)


@op("quantize", since="ios17")
def quantize(
    input: np.ndarray,
    scale: np.ndarray,
    output_dtype: str,
    zero_point: np.ndarray | None = None,
    axis: int | None = None,
) -> np.ndarray:
    """clip(round(input / scale) + zero_point) to int8 or uint8.

    Ties go to even, as in coremltools' `quantize_by_scale_and_zp`; Apple does not document its own. NaN gives 0.
    """
    if output_dtype not in ("int8", "uint8"):
        raise ValueError(f"quantizes to int8 or uint8, not to {output_dtype}")
    limits = np.iinfo(HELD[output_dtype])
    y = np.rint(input / along(scale, input.ndim, axis))
    if zero_point is not None:
        y = y + along(zero_point, input.ndim, axis)
    return np.nan_to_num(np.clip(y, limits.min, limits.max)).astype(limits.dtype)


@op("dequantize", since="ios17")
def dequantize(
    input: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None = None, axis: int | None = None
) -> np.ndarray:
    """scale * (input - zero_point)"""
    y = input.astype(np.float32)
    if zero_point is not None:
        y -= along(zero_point, input.ndim, axis)
    y *= along(scale, input.ndim, axis)
    return y
