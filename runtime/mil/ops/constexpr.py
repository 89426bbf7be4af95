"""Compressed weights: operations on constants, executed once when a program is first run.

Definitions: coremltools' iOS16/constexpr_ops.py and iOS18/compression.py. Arithmetic is in fp32 with one rounding to
the declared type, which gives bit for bit what `coremltools.optimize.coreml.decompress_weights` writes.
"""

from __future__ import annotations

import math

import numpy as np

from ..blobs import unpack
from ..registry import op
from ..types import HELD
from .quantization import along


def _dimensions(shape: np.ndarray) -> tuple[int, ...]:
    return tuple(int(d) for d in np.atleast_1d(shape))


@op("constexpr_affine_dequantize", since="ios16")
def affine_dequantize(quantized_data: np.ndarray, zero_point: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray:
    """scale * (data - zero_point), with one scale for all or one per entry of `axis`."""
    y = quantized_data.astype(np.float32)
    y -= along(zero_point, y.ndim, axis)
    y *= along(scale, y.ndim, axis)
    return y


@op("constexpr_cast", since="ios16")
def cast(source_val: np.ndarray, output_dtype: str) -> np.ndarray:
    """fp16 as fp32."""
    return np.asarray(source_val).astype(HELD[output_dtype], copy=False)


@op("constexpr_lut_to_dense", since="ios16")
def lut_to_dense_ios16(indices: np.ndarray, lut: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """One palette for the whole tensor; its indices packed low bit first, as many bits as the palette needs."""
    bits = int(lut.size).bit_length() - 1
    dimensions = _dimensions(shape)
    count = math.prod(dimensions)
    if 1 << bits != lut.size or indices.size != (bits * count + 7) // 8:
        raise ValueError(f"{indices.size} bytes of indices into {lut.size} entries do not make a shape of {dimensions}")
    flat = unpack(indices, f"uint{bits}", count) if bits < 8 else indices
    return lut[flat].reshape(dimensions)


@op("constexpr_sparse_to_dense", since="ios16")
def sparse_to_dense_ios16(nonzero_data: np.ndarray, mask: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Values where a packed mask has a 1, 0 elsewhere."""
    dimensions = _dimensions(shape)
    count = math.prod(dimensions)
    if mask.size != (count + 7) // 8:
        raise ValueError(f"a mask of {mask.size} bytes does not fit a shape of {dimensions}")
    return _scatter(nonzero_data, unpack(mask, "uint1", count)).reshape(dimensions)


def _scatter(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    chosen = mask.astype(np.bool_)
    if values.ndim != 1 or np.count_nonzero(chosen) != values.size:
        raise ValueError(f"{values.size} values for a mask with {np.count_nonzero(chosen)} ones")
    dense = np.zeros(mask.shape, values.dtype)
    dense[chosen] = values
    return dense


@op("constexpr_sparse_to_dense", since="ios18")
def sparse_to_dense(nonzero_data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values where the mask has a 1, 0 elsewhere."""
    return _scatter(nonzero_data, mask)


def _blocks(shape: tuple[int, ...], parts: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Shapes that split every dimension of `shape` in `parts` blocks: (n0, b0, n1, b1, ...) and (n0, 1, n1, 1, ...)."""
    if len(parts) != len(shape) or any(p == 0 or d % p for d, p in zip(shape, parts, strict=True)):
        raise ValueError(f"blocks of {parts} do not divide a shape of {shape}")
    split = [n for d, p in zip(shape, parts, strict=True) for n in (p, d // p)]
    return split, [n for p in parts for n in (p, 1)]


def _shift_scale(data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None) -> np.ndarray:
    split, thin = _blocks(data.shape, scale.shape)
    y = data.astype(np.float32).reshape(split)
    if offset is not None:
        if offset.shape != scale.shape:
            raise ValueError(f"an offset of {offset.shape} does not fit a scale of {scale.shape}")
        y -= offset.astype(np.float32).reshape(thin)
    y *= scale.reshape(thin)
    return y.reshape(data.shape)


@op("constexpr_blockwise_shift_scale", since="ios18")
def blockwise_shift_scale(data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None) -> np.ndarray:
    """scale * (data - offset), with one scale per block; blocks divide every dimension evenly."""
    return _shift_scale(data, scale, offset)


def _look_up(indices: np.ndarray, lut: np.ndarray, vector_axis: int | None) -> np.ndarray:
    """Entries of the palettes `lut` (blocks..., entries, vector size) at `indices`; vectors go along `vector_axis`."""
    entries, size = lut.shape[-2:]
    split, thin = _blocks(indices.shape, lut.shape[:-2])
    first = (np.arange(math.prod(lut.shape[:-2]), dtype=np.int32) * entries).reshape(thin)
    if indices.size and int(indices.max()) >= entries:
        raise IndexError(f"an index of {int(indices.max())} into a palette of {entries}")
    places = (indices.reshape(split) + first).reshape(indices.shape)
    values = np.take(lut.reshape(-1, size), places, axis=0)
    if size == 1:
        return values[..., 0]
    if vector_axis is None:
        raise ValueError("a palette of vectors needs a vector axis")
    axis = int(vector_axis) % indices.ndim
    shape = list(indices.shape)
    shape[axis] *= size
    return np.moveaxis(values, -1, axis + 1).reshape(shape)


@op("constexpr_lut_to_dense", since="ios18")
def lut_to_dense(indices: np.ndarray, lut: np.ndarray, vector_axis: int | None = None) -> np.ndarray:
    """Palette entries at `indices`: one palette per block, entries scalars or vectors."""
    return _look_up(indices, lut, vector_axis)


@op("constexpr_lut_to_sparse", since="ios18")
def lut_to_sparse(
    indices_mask: np.ndarray, indices_nonzero_data: np.ndarray, lut: np.ndarray, vector_axis: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Palette entries where the mask has a 1: the mask (repeated along the vector axis) and the values."""
    dense = _look_up(_scatter(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask if lut.shape[-1] == 1 else np.repeat(indices_mask, lut.shape[-1], axis=int(vector_axis or 0))
    return mask, dense[mask != 0]


@op("constexpr_sparse_blockwise_shift_scale", since="ios18")
def sparse_blockwise_shift_scale(
    data_mask: np.ndarray, nonzero_data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """scale * (data - offset) where the mask has a 1: the mask and the values."""
    dense = _shift_scale(_scatter(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]
