"""Convolutions: conv, conv_quantized, conv_transpose.

Sums are taken by BLAS in fp32, in an order that neither Apple nor BLAS promises.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..registry import op
from .windows import integers, padded, padding, windows

#: Elements of the buffer into which windows are unrolled: 2 MiB of fp32, so that it stays in the cache until the
#: product has read it. Between a quarter and twice that the time is the same; unrolling everything at once costs a
#: depthwise convolution three times its time.
_BUFFER = 1 << 19


@op("conv")
def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    dilations: Any = None,
    groups: int = 1,
) -> np.ndarray:
    """Cross-correlation of x [n, c, *spatial] with weight [o, c/groups, *kernel], 1-D to 3-D."""
    rank = x.ndim - 2
    groups = int(groups)
    outputs, channels, *kernel = weight.shape
    if x.shape[1] != channels * groups or outputs % groups:
        raise ValueError(f"weight {weight.shape} with {groups} groups does not fit x {x.shape}")
    step, reach = integers(strides, rank, 1), integers(dilations, rank, 1)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, reach, strict=True)]
    source = padded(x, padding(pad_type, pad, x.shape[2:], extent, step))
    sizes = [(n - e) // s + 1 for n, e, s in zip(source.shape[2:], extent, step, strict=True)]
    matrix = np.ascontiguousarray(weight, np.float32).reshape(groups, outputs // groups, -1)
    if all(k == 1 for k in kernel) and all(s == 1 for s in step):
        result = np.matmul(matrix, np.ascontiguousarray(source).reshape(len(x), groups, channels, -1))
    else:
        result = _unrolled(windows(source, kernel, sizes, step, reach), matrix)
    result = result.reshape(len(x), outputs, *sizes)
    if bias is not None:
        result += np.reshape(bias, (-1, *[1] * rank))
    return result


def _unrolled(view: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """matrix [groups, o, c*k] times windows [n, groups*c, *kernel, *sizes] -> [n, groups, o, prod(sizes)].

    Windows are copied piece by piece: several groups at a time when a group is small (depthwise), some rows of a
    group when it is large.
    """
    groups, outputs, depth = matrix.shape
    rank = (view.ndim - 2) // 2
    kernel, sizes = view.shape[2 : 2 + rank], view.shape[2 + rank :]
    channels = view.shape[1] // groups
    ahead = (slice(None),) * (1 + rank)
    row = int(np.prod(sizes[1:]))
    rows = min(sizes[0], max(1, _BUFFER // (depth * row)))
    together = min(groups, max(1, _BUFFER // (depth * row * rows)))
    buffer = np.empty(together * depth * rows * row, np.float32)
    result = np.empty((len(view), groups, outputs, sizes[0] * row), np.float32)
    for n in range(len(view)):
        for g in range(0, groups, together):
            some = min(together, groups - g)
            for r in range(0, sizes[0], rows):
                count = min(rows, sizes[0] - r)
                piece = buffer[: some * depth * count * row]
                part = view[n, g * channels : (g + some) * channels][(*ahead, slice(r, r + count))]
                np.copyto(piece.reshape(some * channels, *kernel, count, *sizes[1:]), part)
                np.matmul(
                    matrix[g : g + some],
                    piece.reshape(some, depth, count * row),
                    out=result[n, g : g + some, :, r * row : (r + count) * row],
                )
    return result


@op("conv_quantized")
def conv_quantized(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    quantization_type: str,
    nbits: int = 8,
    quant_scale: np.ndarray,
    quant_bias: np.ndarray,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    dilations: Any = None,
    groups: int = 1,
) -> np.ndarray:
    """conv with uint8 weights, `weight * quant_scale + quant_bias` (a scalar each, or one value per output channel).

    Experimental in coremltools, and replaced by constexpr operations. For "lut" its documentation does not say where
    the table is, so that it is refused.
    """
    if quantization_type != "linear":
        raise ValueError(f'quantization_type "{quantization_type}" has no documented meaning; only "linear" has')
    column = (-1, *[1] * (weight.ndim - 1))
    dense = weight.astype(np.float32) * np.reshape(quant_scale, column) + np.reshape(quant_bias, column)
    return conv(
        x,
        dense.astype(np.float32),
        None if bias is None else np.asarray(bias, np.float32),
        strides=strides,
        pad_type=pad_type,
        pad=pad,
        dilations=dilations,
        groups=groups,
    )


@op("conv_transpose")
def conv_transpose(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    pad: Any = None,
    output_shape: Any = None,
    pad_type: str = "valid",
    strides: Any = None,
    dilations: Any = None,
    groups: int = 1,
) -> np.ndarray:
    """The gradient of conv: x [n, c, *spatial], weight [c, o/groups, *kernel] -> [n, o, *spatial'].

    The full result has (size - 1) * stride + dilated kernel elements; "custom" drops `pad` at either end and "same"
    keeps size * stride of them, dropping the odd element at the end like TensorFlow. A given `output_shape` keeps the
    first element where the pad type puts it and sets the length; elements beyond the full result are the bias alone.
    """
    rank = x.ndim - 2
    groups = int(groups)
    channels, outputs, *kernel = weight.shape
    if x.shape[1] != channels or channels % groups:
        raise ValueError(f"weight {weight.shape} with {groups} groups does not fit x {x.shape}")
    step, reach = integers(strides, rank, 1), integers(dilations, rank, 1)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, reach, strict=True)]
    wanted = None if output_shape is None else integers(output_shape, rank + 2, 0)[2:]
    first, sizes = _kept(pad_type, pad, x.shape[2:], extent, step, wanted)

    # One product gives what each input element adds to each of its kernel positions; those are added in place.
    matrix = weight.reshape(groups, channels // groups, -1).swapaxes(1, 2)
    parts = np.matmul(matrix, np.ascontiguousarray(x).reshape(len(x), groups, channels // groups, -1))
    parts = parts.reshape(len(x), groups * outputs, *kernel, *x.shape[2:])
    full = [max((n - 1) * s + e, f + o) for n, s, e, f, o in zip(x.shape[2:], step, extent, first, sizes, strict=True)]
    total = np.zeros((len(x), groups * outputs, *full), np.float32)
    for place in np.ndindex(*kernel):
        target = tuple(
            slice(p * d, p * d + (n - 1) * s + 1, s) for p, d, n, s in zip(place, reach, x.shape[2:], step, strict=True)
        )
        total[(slice(None), slice(None), *target)] += parts[(slice(None), slice(None), *place)]
    result = total[(slice(None), slice(None), *[slice(f, f + o) for f, o in zip(first, sizes, strict=True)])]
    if bias is not None:
        return result + np.reshape(bias, (-1, *[1] * rank))
    return np.ascontiguousarray(result)


def _kept(
    pad_type: str, pad: Any, spatial: Any, extent: list[int], step: list[int], wanted: list[int] | None
) -> tuple[list[int], list[int]]:
    """First element and number of elements that conv_transpose keeps of the full result, per dimension."""
    full = [(n - 1) * s + e for n, s, e in zip(spatial, step, extent, strict=True)]
    kind = pad_type.lower()
    if kind == "valid":
        return [0] * len(full), wanted or full
    if kind == "custom":
        pairs = padding("custom", pad, spatial, extent, step)
        return [b for b, _ in pairs], wanted or [f - b - a for f, (b, a) in zip(full, pairs, strict=True)]
    if kind != "same":
        raise ValueError(f'pad_type must be "valid", "same" or "custom", got "{pad_type}"')
    sizes = wanted or [n * s for n, s in zip(spatial, step, strict=True)]
    return [max(0, f - o) // 2 for f, o in zip(full, sizes, strict=True)], sizes
