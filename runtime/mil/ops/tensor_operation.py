"""Operations that build, sort, pad and join tensors. Definitions: coremltools' */tensor_operation.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..registry import op
from ..types import HELD, TensorType

_ZERO, _ZERO_INT, _ONE_INT = np.float32(0), np.int32(0), np.int32(1)


def _ints(values: Any) -> list[int]:
    return [int(v) for v in np.atleast_1d(values)]


@op("shape")
def shape(x: np.ndarray, *, out: tuple[TensorType, ...]) -> np.ndarray:
    """The dimensions of x."""
    return np.array(np.shape(x), HELD[out[0].dtype])


@op("fill", exact=True)
def fill(shape: np.ndarray, value: Any = _ZERO) -> np.ndarray:
    """A tensor of `shape` filled with `value`."""
    return np.full(_ints(shape), value)


@op("fill_like", since="ios16", exact=True)
def fill_like(ref_tensor: np.ndarray, value: Any = _ZERO) -> np.ndarray:
    """A tensor of the shape of `ref_tensor` filled with `value`."""
    return np.full(ref_tensor.shape, value)


@op("range_1d")
def range_1d(start: Any, end: Any, step: Any, *, out: tuple[TensorType, ...]) -> np.ndarray:
    """start, start + step, ... below `end`."""
    held = HELD[out[0].dtype]
    if held.kind == "f":
        return np.arange(float(start), float(end), float(step)).astype(held)
    return np.arange(int(start), int(end), int(step), dtype=held)


@op("one_hot", exact=True)
def one_hot(
    indices: np.ndarray,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Any = _ONE_INT,
    off_value: Any = _ZERO_INT,
) -> np.ndarray:
    """`on_value` where the new dimension equals the index, `off_value` elsewhere and for indices out of range."""
    indices = np.asarray(indices)
    axis = int(axis) % (indices.ndim + 1)
    steps = np.arange(int(one_hot_vector_size)).reshape((-1,) + (1,) * (indices.ndim - axis))
    return np.where(np.expand_dims(indices, axis) == steps, on_value, off_value)


@op("non_zero")
def non_zero(x: np.ndarray) -> np.ndarray:
    """(count, rank) indices of the elements that are not 0, in row-major order."""
    return np.stack(np.nonzero(x), axis=1).astype(np.int32)


@op("band_part", exact=True)
def band_part(x: np.ndarray, lower: int = -1, upper: int = -1) -> np.ndarray:
    """x with 0 outside a band: `lower` diagonals below and `upper` above the main one are kept, all when negative."""
    below = np.arange(x.shape[-2])[:, None] - np.arange(x.shape[-1])
    keep = ((lower < 0) | (below <= lower)) & ((upper < 0) | (-below <= upper))
    return np.where(keep, x, np.zeros((), x.dtype))


@op("cumsum")
def cumsum(x: np.ndarray, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> np.ndarray:
    """Running sum along `axis`; `exclusive` leaves each element itself out, `reverse` starts from the end."""
    axis = int(axis)
    if reverse:
        x = np.flip(x, axis)
    y = np.cumsum(x, axis=axis, dtype=np.float64 if x.dtype.kind == "f" else x.dtype)
    if exclusive:  # shifted, not y - x, which would be NaN at an infinity
        y = np.roll(y, 1, axis)
        first: list[Any] = [slice(None)] * x.ndim
        first[axis] = 0
        y[tuple(first)] = 0
    if reverse:
        y = np.flip(y, axis)
    return y.astype(x.dtype)


@op("tile", exact=True)
def tile(x: np.ndarray, reps: np.ndarray) -> np.ndarray:
    """x repeated reps[i] times along dimension i."""
    return np.tile(x, _ints(reps))


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


@op("pad", exact=True)
def pad(x: np.ndarray, pad: np.ndarray, mode: str = "constant", constant_val: Any = _ZERO) -> np.ndarray:
    """x with pad[2i] elements before and pad[2i + 1] after each of its last dimensions.

    "reflect" does not repeat the border element, "replicate" repeats nothing else (PyTorch's meaning of both).
    """
    if mode not in _PAD_MODES:
        raise ValueError(f"unknown mode {mode!r}")
    amounts = _ints(pad)
    if len(amounts) % 2 or len(amounts) > 2 * x.ndim or min(amounts, default=0) < 0:
        raise ValueError(f"cannot pad {x.shape} by {amounts}")
    widths = [(0, 0)] * (x.ndim - len(amounts) // 2) + list(zip(amounts[::2], amounts[1::2], strict=True))
    if mode == "constant":
        return np.pad(x, widths, constant_values=np.asarray(constant_val).astype(x.dtype))
    if mode == "reflect" and any(max(w) >= d for w, d in zip(widths, x.shape, strict=True) if max(w)):
        raise ValueError(f"cannot reflect {x.shape} by {amounts}")
    return np.pad(x, widths, mode=_PAD_MODES[mode])  # type: ignore[call-overload]


@op("concat", exact=True, variadic=("values",))
def concat(values: tuple[np.ndarray, ...], axis: int, interleave: bool = False) -> np.ndarray:
    """Tensors joined along `axis`, whole or (interleave) element after element; scalars are joined to a vector."""
    arrays = [np.atleast_1d(v) for v in values]
    axis = int(axis)
    if not interleave:
        return np.concatenate(arrays, axis=axis)
    axis %= arrays[0].ndim
    stacked = np.stack(arrays, axis=axis + 1)
    return stacked.reshape(*stacked.shape[:axis], -1, *stacked.shape[axis + 2 :])


@op("stack", exact=True, variadic=("values",))
def stack(values: tuple[np.ndarray, ...], axis: int) -> np.ndarray:
    """Tensors of one shape joined along a new dimension `axis`."""
    return np.stack(values, axis=int(axis))


@op("split", exact=True)
def split(
    x: np.ndarray, axis: int, num_splits: int | None = None, split_sizes: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    """x cut along `axis` in equal parts or in parts of the given sizes."""
    axis = int(axis)
    if split_sizes is None:
        return tuple(np.split(x, int(num_splits or 0), axis=axis))
    sizes = _ints(split_sizes)
    if sum(sizes) != x.shape[axis] or min(sizes) < 0:
        raise ValueError(f"parts of {sizes} do not make up a dimension of {x.shape[axis]}")
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


def _order(x: np.ndarray, axis: int, ascending: bool) -> np.ndarray:
    """Indices that sort along `axis`. Equal elements keep their order in both directions; NaN comes last.

    Core ML documents no order of equal elements. PyTorch's CPU sort and coremltools' own inference, argsort(-x), agree
    with this one where they are stable.
    """
    if ascending:
        return np.argsort(x, axis=axis, kind="stable")
    if x.dtype.kind == "f":
        return np.argsort(-x, axis=axis, kind="stable")
    if x.dtype.kind == "b":
        return np.argsort(~x, axis=axis, kind="stable")
    return np.argsort(-x.astype(np.int64), axis=axis, kind="stable")


@op("argsort")
def argsort(x: np.ndarray, axis: int = -1, ascending: bool = False, *, out: tuple[TensorType, ...]) -> np.ndarray:
    """Indices that sort x along `axis`."""
    return _order(x, int(axis), bool(ascending)).astype(HELD[out[0].dtype])


@op("topk", exact=True)
def topk(
    x: np.ndarray,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """The k largest (ascending: smallest) elements along `axis` and their indices; all of them when k is -1.

    Without `sort` any order is allowed; the sorted one is given. Of equal elements the first come first.
    """
    axis, k = int(axis), int(k)
    count = x.shape[axis] if k == -1 else k
    if not 0 <= count <= x.shape[axis]:
        raise ValueError(f"k={k} is more than the {x.shape[axis]} elements along axis {axis}")
    indices = np.take(_order(x, axis, bool(ascending)), np.arange(count), axis=axis)
    values = np.take_along_axis(x, indices, axis=axis)
    return (values, indices.astype(HELD[output_indices_dtype])) if return_indices else values


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a (4,) box with (n, 4) others, all (x, y, width, height) about their centre."""
    low = np.maximum(box[:2] - box[2:] / 2, others[:, :2] - others[:, 2:] / 2)
    high = np.minimum(box[:2] + box[2:] / 2, others[:, :2] + others[:, 2:] / 2)
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    union = box[2] * box[3] + others[:, 2] * others[:, 3] - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0)


def _select(
    boxes: np.ndarray, scores: np.ndarray, iou: float, least: float, most: int, per_class: bool
) -> tuple[list[int], np.ndarray]:
    """Indices of the boxes kept, best first, of (B, 4) boxes and (B, K) scores.

    A box's score is that of its best class; with `per_class`, only boxes of the same best class suppress each other.
    """
    best = scores.max(axis=1) if scores.shape[1] else np.zeros(len(scores), scores.dtype)
    label = scores.argmax(axis=1) if scores.shape[1] else np.zeros(len(scores), np.int64)
    alive = best >= least
    kept: list[int] = []
    for candidate in np.argsort(-best, kind="stable"):
        if len(kept) == most:
            break
        if not alive[candidate]:
            continue
        kept.append(int(candidate))
        suppressed = _overlaps(boxes[candidate], boxes) > iou
        if per_class:
            suppressed &= label == label[candidate]
        alive &= ~suppressed
        alive[candidate] = False
    return kept, best


def _suppress(
    boxes: np.ndarray, scores: np.ndarray, iou: float, least: float, most: int, per_class: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    batch, _, classes = scores.shape
    # What pads the result when fewer boxes survive is undocumented; coremltools' own tests expect 0 and the index -1.
    out_boxes = np.zeros((batch, most, 4), boxes.dtype)
    out_scores = np.zeros((batch, most, classes), scores.dtype)
    indices = np.full((batch, most), -1, np.int32)
    counts = np.zeros(batch, np.int32)
    for i in range(batch):
        kept, _ = _select(boxes[i], scores[i], float(iou), float(least), most, per_class)
        out_boxes[i, : len(kept)] = boxes[i][kept]
        out_scores[i, : len(kept)] = scores[i][kept]
        indices[i, : len(kept)] = kept
        counts[i] = len(kept)
    return out_boxes, out_scores, indices, counts


@op("non_maximum_suppression", exact=True)
def non_maximum_suppression(
    boxes: np.ndarray,
    scores: np.ndarray,
    iou_threshold: float,
    score_threshold: float,
    max_boxes: int,
    per_class_suppression: bool = False,
) -> tuple[np.ndarray, ...]:
    """Boxes (n, B, 4) that no better box overlaps by more than the threshold: boxes, scores, indices, counts."""
    return _suppress(boxes, scores, iou_threshold, score_threshold, int(max_boxes), bool(per_class_suppression))


@op("non_maximum_suppression", since="ios17", exact=True)
def non_maximum_suppression_ios17(
    boxes: np.ndarray,
    scores: np.ndarray,
    iou_threshold: float,
    max_boxes: int,
    per_class_suppression: bool = False,
) -> tuple[np.ndarray, ...]:
    """The same with the boxes in the last dimension, (n, 4, B), no score threshold and no counts."""
    kept, best, indices, _ = _suppress(
        boxes.swapaxes(1, 2), scores.swapaxes(1, 2), iou_threshold, -np.inf, int(max_boxes), bool(per_class_suppression)
    )
    return kept.swapaxes(1, 2), best.swapaxes(1, 2), indices
