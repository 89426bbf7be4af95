"""Moving values: shapes, permutations, slices, blocks. Definitions: coremltools' */tensor_transformation.py.

Every operation here is exact: its results are its inputs, elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..registry import op


def _ints(values: Any) -> list[int]:
    return [int(v) for v in np.atleast_1d(values)]


@op("identity", exact=True)
def identity(x: Any) -> Any:
    """x"""
    return x


@op("transpose", exact=True)
def transpose(x: np.ndarray, perm: np.ndarray) -> np.ndarray:
    """Dimension i of the result is dimension perm[i] of x."""
    return np.transpose(x, perm) if np.ndim(x) else x


@op("reshape", exact=True)
def reshape(x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """x with another shape; -1 is inferred, 0 keeps the dimension of x at that place (the ranks must be equal)."""
    x = np.asarray(x)
    target = _ints(shape)
    if 0 in target and x.size:
        if len(target) != x.ndim:
            raise ValueError(f"a shape with 0, {target}, needs the rank of x, {x.ndim}")
        target = [d or x.shape[i] for i, d in enumerate(target)]
    return x.reshape(target)


@op("reshape", since="ios17", exact=True)
def reshape_ios17(x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """The same, but a 0 keeps the dimension of x at that place counted from the last; 1 where x has none there."""
    x = np.asarray(x)
    target = _ints(shape)
    if 0 in target and x.size:
        missing = len(target) - x.ndim
        target = [d or (x.shape[i - missing] if i >= missing else 1) for i, d in enumerate(target)]
    return x.reshape(target)


@op("reshape_like", since="ios16", exact=True, variadic=("ref_tensors", "begins", "ends", "end_masks"))
def reshape_like(
    x: np.ndarray,
    ref_tensors: tuple[np.ndarray, ...],
    begins: tuple[int, ...],
    ends: tuple[int, ...],
    end_masks: tuple[bool, ...],
) -> np.ndarray:
    """x with the shape made of shape[begin:end] of each reference (shape[begin:] where its end mask is true)."""
    target: list[int] = []
    for reference, begin, end, mask in zip(ref_tensors, begins, ends, end_masks, strict=True):
        target += reference.shape[int(begin) : None if mask else int(end)]
    return x.reshape(target)


@op("expand_dims", exact=True)
def expand_dims(x: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """x with dimensions of size 1 inserted at `axes` of the result."""
    return np.expand_dims(x, tuple(_ints(axes)))


@op("squeeze", exact=True)
def squeeze(x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    """x without the dimensions `axes` (all, when not given); dimensions that are not 1 stay, as in PyTorch."""
    x = np.asarray(x)
    chosen = range(x.ndim) if axes is None else [a + x.ndim if a < 0 else a for a in _ints(axes)]
    return np.squeeze(x, axis=tuple(a for a in set(chosen) if x.shape[a] == 1))


@op("flatten2d", exact=True)
def flatten2d(x: np.ndarray, axis: int = 1) -> np.ndarray:
    """The dimensions before `axis` as rows, the others as columns."""
    rows = int(np.prod(x.shape[: int(axis)], dtype=np.int64))
    return x.reshape(rows, int(np.prod(x.shape[int(axis) :], dtype=np.int64)))


@op("reverse", exact=True)
def reverse(x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    """x with the order along `axes` (all, when not given) reversed."""
    return np.flip(x, None if axes is None else tuple(_ints(axes)))


@op("reverse_sequence", exact=True)
def reverse_sequence(x: np.ndarray, lengths: np.ndarray, seq_axis: int = 0, batch_axis: int = 0) -> np.ndarray:
    """For each entry i of `batch_axis`, the first lengths[i] elements along `seq_axis` reversed."""
    y = np.moveaxis(np.array(x), (int(batch_axis), int(seq_axis)), (0, 1))
    for row, length in zip(y, _ints(lengths), strict=True):
        row[:length] = row[:length][::-1].copy()
    return np.moveaxis(y, (0, 1), (int(batch_axis), int(seq_axis)))


def _slices(
    rank: int,
    begin: Any,
    end: Any,
    stride: Any | None,
    begin_mask: Any | None,
    end_mask: Any | None,
    squeeze_mask: Any | None,
) -> tuple[slice | int, ...]:
    """A numpy index: masked ends are open, and a squeezed dimension is the single index `begin`."""
    begins, ends = _ints(begin), _ints(end)
    if len(begins) != rank or len(ends) != rank:
        raise ValueError(f"begin and end need {rank} values, got {len(begins)} and {len(ends)}")
    strides = [1] * rank if stride is None else _ints(stride)
    masks = [[False] * rank if m is None else list(np.atleast_1d(m)) for m in (begin_mask, end_mask, squeeze_mask)]
    index: list[slice | int] = []
    for i in range(rank):
        start = None if masks[0][i] else begins[i]
        if masks[2][i]:
            index.append(start or 0)
        else:
            index.append(slice(start, None if masks[1][i] else ends[i], strides[i]))
    return tuple(index)


@op("slice_by_index", exact=True)
def slice_by_index(
    x: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    stride: np.ndarray | None = None,
    begin_mask: np.ndarray | None = None,
    end_mask: np.ndarray | None = None,
    squeeze_mask: np.ndarray | None = None,
) -> np.ndarray:
    """x[begin:end:stride] in every dimension, by numpy's rules."""
    return np.asarray(x[_slices(x.ndim, begin, end, stride, begin_mask, end_mask, squeeze_mask)])


@op("slice_by_size", exact=True)
def slice_by_size(x: np.ndarray, begin: np.ndarray, size: np.ndarray) -> np.ndarray:
    """`size` elements from `begin` in every dimension; a size of -1 takes the rest."""
    index = []
    for start, count, dimension in zip(_ints(begin), _ints(size), x.shape, strict=True):
        start = start + dimension if start < 0 else start
        stop = dimension if count == -1 else start + count
        if not 0 <= start <= stop <= dimension:
            raise IndexError(f"{count} elements from {start} are not in a dimension of {dimension}")
        index.append(slice(start, stop))
    return x[tuple(index)]


@op("slice_update", since="ios18", exact=True)
def slice_update(
    x: np.ndarray,
    update: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    stride: np.ndarray | None = None,
    begin_mask: np.ndarray | None = None,
    end_mask: np.ndarray | None = None,
    squeeze_mask: np.ndarray | None = None,
) -> np.ndarray:
    """x with x[begin:end:stride] replaced by `update`."""
    y = np.array(x)
    index = _slices(x.ndim, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    y[index] = np.reshape(update, y[index].shape)
    return y


@op("sliding_windows", exact=True)
def sliding_windows(x: np.ndarray, axis: int, size: int, stride: int = 1) -> np.ndarray:
    """Windows of `size` along `axis`, every `stride`: a new dimension of that size after `axis`."""
    axis = int(axis) % x.ndim
    windows = np.moveaxis(sliding_window_view(x, int(size), axis), -1, axis + 1)
    return windows[(slice(None),) * axis + (slice(None, None, int(stride)),)]


@op("depth_to_space", exact=True)
def depth_to_space(x: np.ndarray, block_size: int) -> np.ndarray:
    """(n, c, h, w) to (n, c / b^2, h * b, w * b); the block is the slower part of the channels (TensorFlow's order)."""
    n, c, h, w = x.shape
    b = int(block_size)
    y = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // (b * b), h * b, w * b)


@op("space_to_depth", exact=True)
def space_to_depth(x: np.ndarray, block_size: int) -> np.ndarray:
    """(n, c, h, w) to (n, c * b^2, h / b, w / b): the inverse of depth_to_space."""
    n, c, h, w = x.shape
    b = int(block_size)
    y = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * b * b, h // b, w // b)


@op("pixel_shuffle", exact=True)
def pixel_shuffle(x: np.ndarray, upscale_factor: int) -> np.ndarray:
    """(n, c * f^2, h, w) to (n, c, h * f, w * f), as PyTorch's PixelShuffle."""
    n, c, h, w = x.shape
    f = int(upscale_factor)
    y = x.reshape(n, c // (f * f), f, f, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // (f * f), h * f, w * f)


@op("pixel_unshuffle", since="ios16", exact=True)
def pixel_unshuffle(x: np.ndarray, downscale_factor: int) -> np.ndarray:
    """(n, c, h, w) to (n, c * f^2, h / f, w / f), as PyTorch's PixelUnshuffle."""
    n, c, h, w = x.shape
    f = int(downscale_factor)
    y = x.reshape(n, c, h // f, f, w // f, f).transpose(0, 1, 3, 5, 2, 4)
    return y.reshape(n, c * f * f, h // f, w // f)


@op("space_to_batch", exact=True)
def space_to_batch(x: np.ndarray, block_shape: np.ndarray, paddings: np.ndarray) -> np.ndarray:
    """Zero-padded spatial dimensions cut in blocks whose offsets go to the batch, as TensorFlow's space_to_batch."""
    (bh, bw), (rows, columns) = _ints(block_shape), np.asarray(paddings).tolist()
    x = np.pad(x, ((0, 0), (0, 0), rows, columns))
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // bh, bh, w // bw, bw).transpose(3, 5, 0, 1, 2, 4)
    return y.reshape(n * bh * bw, c, h // bh, w // bw)


@op("batch_to_space", exact=True)
def batch_to_space(x: np.ndarray, block_shape: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """The inverse of space_to_batch, with `crops` removed from the spatial dimensions."""
    (bh, bw), ((top, bottom), (left, right)) = _ints(block_shape), np.asarray(crops).tolist()
    n, c, h, w = x.shape
    y = x.reshape(bh, bw, n // (bh * bw), c, h, w).transpose(2, 3, 4, 0, 5, 1)
    y = y.reshape(n // (bh * bw), c, h * bh, w * bw)
    return y[:, :, top : h * bh - bottom, left : w * bw - right]
