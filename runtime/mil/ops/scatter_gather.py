"""Reading and writing at indices: gather, gather_along_axis, gather_nd, scatter, scatter_along_axis, scatter_nd.

Indices out of bounds. Up to iOS 16 an index may be negative and counts from the end; anything beyond is an error, as
in the TensorFlow operations that the documentation names. From iOS 17 on a negative index is out of bounds too; with
`validate_indices` it is an error, without it "undefined but memory safe". Here such a gather reads 0 and such a scatter
writes nothing: coremltools' tests only require that a scatter does not count from the end, models may compute indices
that a later mask makes irrelevant, and a 0 does not pass for the wrapped value that only this interpreter would give.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..registry import op


def _checked(indices: Any, size: int, wraps: bool, validate: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
    """`indices` as intp within [0, size), and a mask of those that were not (None when all were).

    Raises IndexError naming the first offender when `validate`.
    """
    index = np.asarray(indices).astype(np.intp)
    if index.size == 0 or (index.min() >= 0 and index.max() < size):
        return index, None
    if wraps:
        index = np.where(index < 0, index + size, index)
    outside = (index < 0) | (index >= size)
    if not outside.any():
        return index, None
    if validate:
        wrong = np.asarray(indices)[outside].flat[0]
        raise IndexError(f"index {wrong} is out of bounds for a dimension of {size}")
    return np.where(outside, 0, index), outside


def _axis(axis: Any, rank: int) -> int:
    if not -rank <= int(axis) < rank:
        raise ValueError(f"axis {axis} is out of range for rank {rank}")
    return int(axis) % rank


# --- gather ---------------------------------------------------------------------------------------------------------


def _gather(x: np.ndarray, index: np.ndarray, outside: np.ndarray | None, axis: int, batch: int) -> np.ndarray:
    if batch == 0:
        result = np.take(x, index, axis=axis)
        if outside is not None:
            result[(slice(None),) * axis + (outside,)] = 0
        return result
    # x as [batch, before, axis, after], indices as [batch, m].
    lead = x.shape[:batch]
    many = int(np.prod(lead))
    before, after = x.shape[batch:axis], x.shape[axis + 1 :]
    flat = x.reshape(many, int(np.prod(before)), x.shape[axis], int(np.prod(after)))
    rows = np.broadcast_to(index, lead + index.shape[batch:]).reshape(many, -1)
    result = flat[np.arange(many)[:, None], :, rows]  # [batch, m, before, after]
    if outside is not None:
        result[np.broadcast_to(outside, lead + index.shape[batch:]).reshape(many, -1)] = 0
    return np.moveaxis(result, 1, 2).reshape(*lead, *before, *index.shape[batch:], *after)


@op("gather", exact=True)
def gather(x: np.ndarray, indices: Any, axis: int = 0, batch_dims: int = 0) -> np.ndarray:
    """x[:, ..., indices, ...] along `axis`, pairing the first `batch_dims` dimensions (iOS 16)."""
    along = _axis(axis, x.ndim)
    index, outside = _checked(indices, x.shape[along], wraps=True)
    return _gather(x, index, outside, along, int(batch_dims))


@op("gather", since="ios17", exact=True)
def gather_ios17(
    x: np.ndarray, indices: Any, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> np.ndarray:
    """gather without negative indices."""
    along = _axis(axis, x.ndim)
    index, outside = _checked(indices, x.shape[along], wraps=False, validate=bool(validate_indices))
    return _gather(x, index, outside, along, int(batch_dims))


def _gather_along_axis(x: np.ndarray, index: np.ndarray, outside: np.ndarray | None, axis: int) -> np.ndarray:
    _same_but_axis(x, index, axis)
    result = np.take_along_axis(x, index, axis=axis)
    if outside is not None:
        result[outside] = 0
    return result


def _same_but_axis(x: np.ndarray, index: np.ndarray, axis: int) -> None:
    """ValueError unless `index` has the shape of `x` except along `axis`; numpy would broadcast instead."""
    if x.ndim != index.ndim or any(
        a != b for i, (a, b) in enumerate(zip(x.shape, index.shape, strict=True)) if i != axis
    ):
        raise ValueError(f"indices {index.shape} must have the shape of the data {x.shape} except along axis {axis}")


@op("gather_along_axis", exact=True)
def gather_along_axis(x: np.ndarray, indices: Any, axis: int = 0) -> np.ndarray:
    """One element of `x` along `axis` for each element of `indices`."""
    along = _axis(axis, x.ndim)
    index, outside = _checked(indices, x.shape[along], wraps=True)
    return _gather_along_axis(x, index, outside, along)


@op("gather_along_axis", since="ios17", exact=True)
def gather_along_axis_ios17(x: np.ndarray, indices: Any, axis: int = 0, validate_indices: bool = False) -> np.ndarray:
    """gather_along_axis without negative indices."""
    along = _axis(axis, x.ndim)
    index, outside = _checked(indices, x.shape[along], wraps=False, validate=bool(validate_indices))
    return _gather_along_axis(x, index, outside, along)


def _flat_positions(
    indices: Any, sizes: tuple[int, ...], wraps: bool, validate: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Index vectors (last axis of `indices`) over dimensions `sizes` as positions in C order, and which are bad."""
    vectors = np.asarray(indices)
    position = np.zeros(vectors.shape[:-1], np.intp)
    bad: np.ndarray | None = None
    for column, size in enumerate(sizes):
        index, outside = _checked(vectors[..., column], size, wraps, validate)
        position = position * size + index
        if outside is not None:
            bad = outside if bad is None else bad | outside
    return position, bad


def _gather_nd(x: np.ndarray, indices: Any, batch: int, wraps: bool, validate: bool) -> np.ndarray:
    depth = np.shape(indices)[-1]
    if batch + depth > x.ndim:
        raise ValueError(f"indices of {depth} coordinates after {batch} batch dimensions exceed rank {x.ndim}")
    sizes, rest = x.shape[batch : batch + depth], x.shape[batch + depth :]
    position, bad = _flat_positions(indices, sizes, wraps, validate)
    if batch:
        many = int(np.prod(x.shape[:batch]))
        start = (np.arange(many) * int(np.prod(sizes))).reshape(x.shape[:batch] + (1,) * (position.ndim - batch))
        position = position + start
    result = x.reshape(-1, *rest)[position]
    if bad is not None:
        result[bad] = 0
    return result


@op("gather_nd", exact=True)
def gather_nd(x: np.ndarray, indices: Any, batch_dims: int = 0) -> np.ndarray:
    """The slice of `x` at each index vector (last axis of `indices`), like tf.gather_nd."""
    return _gather_nd(x, indices, int(batch_dims), wraps=True, validate=True)


@op("gather_nd", since="ios17", exact=True)
def gather_nd_ios17(x: np.ndarray, indices: Any, batch_dims: int = 0, validate_indices: bool = False) -> np.ndarray:
    """gather_nd without negative indices."""
    return _gather_nd(x, indices, int(batch_dims), wraps=False, validate=bool(validate_indices))


# --- scatter --------------------------------------------------------------------------------------------------------
# The documentation of scatter gives "update" as the default mode, its code "add"; programs on disk carry the code's.


def _divide(total: np.ndarray, places: Any, values: np.ndarray) -> None:
    """Integers are divided towards zero, the C rule; MIL does not say."""
    if total.dtype.kind != "i":
        np.divide.at(total, places, values)
        return
    exact = total.astype(np.float64)
    np.divide.at(exact, places, values)
    total[...] = np.trunc(exact).astype(total.dtype)


_MODES = {
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "div": _divide,
    "max": np.maximum.at,
    "min": np.minimum.at,
}


def _write(total: np.ndarray, places: Any, values: np.ndarray, mode: str) -> None:
    """Apply `values` at `places` of `total` in place. Repeated places: all count; "update" keeps the last."""
    if mode == "update":
        total[places] = values
        return
    apply = _MODES.get(mode)
    if apply is None:
        raise ValueError(f'mode "{mode}" is none of update, {", ".join(_MODES)}')
    apply(total, places, values)


def _scatter(data: np.ndarray, indices: Any, updates: np.ndarray, axis: int, mode: str, **rule: bool) -> np.ndarray:
    along = _axis(axis, data.ndim)
    index, outside = _checked(indices, data.shape[along], **rule)
    result = data.copy()
    values = np.moveaxis(updates.reshape(*data.shape[:along], index.size, *data.shape[along + 1 :]), along, 0)
    index = index.reshape(-1)
    if outside is not None:
        index, values = index[~outside.reshape(-1)], values[~outside.reshape(-1)]
    _write(np.moveaxis(result, along, 0), index, values, mode)
    return result


@op("scatter")
def scatter(data: np.ndarray, indices: Any, updates: np.ndarray, axis: int = 0, mode: str = "add") -> np.ndarray:
    """`data` with the slices of `updates` applied at `indices` along `axis`."""
    return _scatter(data, indices, updates, axis, mode, wraps=True)


@op("scatter", since="ios17")
def scatter_ios17(
    data: np.ndarray,
    indices: Any,
    updates: np.ndarray,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> np.ndarray:
    """scatter without negative indices."""
    return _scatter(data, indices, updates, axis, mode, wraps=False, validate=bool(validate_indices))


def _scatter_along_axis(
    data: np.ndarray, indices: Any, updates: np.ndarray, axis: int, mode: str, **rule: bool
) -> np.ndarray:
    along = _axis(axis, data.ndim)
    index, outside = _checked(indices, data.shape[along], **rule)
    _same_but_axis(data, index, along)
    places = list(np.indices(index.shape, sparse=True))
    places[along] = index
    values = np.broadcast_to(updates, index.shape)
    if outside is not None:
        keep = ~outside
        places = [np.broadcast_to(p, index.shape)[keep] for p in places]
        values = values[keep]
    result = data.copy()
    _write(result, tuple(places), values, mode)
    return result


@op("scatter_along_axis")
def scatter_along_axis(
    data: np.ndarray, indices: Any, updates: np.ndarray, axis: int = 0, mode: str = "add"
) -> np.ndarray:
    """`data` with each element of `updates` applied at the matching element of `indices` along `axis`."""
    return _scatter_along_axis(data, indices, updates, axis, mode, wraps=True)


@op("scatter_along_axis", since="ios17")
def scatter_along_axis_ios17(
    data: np.ndarray,
    indices: Any,
    updates: np.ndarray,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> np.ndarray:
    """scatter_along_axis without negative indices."""
    return _scatter_along_axis(data, indices, updates, axis, mode, wraps=False, validate=bool(validate_indices))


def _scatter_nd(
    data: np.ndarray, indices: Any, updates: np.ndarray, mode: str, wraps: bool, validate: bool
) -> np.ndarray:
    depth = np.shape(indices)[-1]
    if depth > data.ndim:
        raise ValueError(f"indices of {depth} coordinates exceed rank {data.ndim}")
    rest = data.shape[depth:]
    position, bad = _flat_positions(indices, data.shape[:depth], wraps, validate)
    values = np.broadcast_to(updates, (*position.shape, *rest)).reshape(-1, *rest)
    position = position.reshape(-1)
    if bad is not None:
        keep = ~bad.reshape(-1)
        position, values = position[keep], values[keep]
    result = np.array(data, order="C")
    _write(result.reshape(-1, *rest), position, values, mode)
    return result


@op("scatter_nd")
def scatter_nd(data: np.ndarray, indices: Any, updates: np.ndarray, mode: str = "add") -> np.ndarray:
    """`data` with the slices of `updates` applied at the index vectors (last axis of `indices`)."""
    return _scatter_nd(data, indices, updates, mode, wraps=True, validate=True)


@op("scatter_nd", since="ios17")
def scatter_nd_ios17(
    data: np.ndarray, indices: Any, updates: np.ndarray, mode: str = "add", validate_indices: bool = False
) -> np.ndarray:
    """scatter_nd without negative indices."""
    return _scatter_nd(data, indices, updates, mode, wraps=False, validate=bool(validate_indices))
