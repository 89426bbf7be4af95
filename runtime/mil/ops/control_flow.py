"""Selection, lists and classification. `cond` and `while_loop` themselves are in the executor.

Definitions: coremltools' iOS15/control_flow.py and iOS15/classify.py. A list is a tuple of arrays; operations return a
new one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..registry import op
from ..types import HELD, ListType, TensorType


class List(tuple[np.ndarray, ...]):
    """The value of a MIL list; a class of its own, so that it is not taken for several outputs."""

    __slots__ = ()


@op("select", exact=True)
def select(cond: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a where cond, else b, with broadcasting."""
    return np.where(cond, a, b)


@op("make_list")
def make_list(
    elem_shape: Any = (),
    init_length: int = 1,
    dynamic_length: bool = True,
    dtype: str = "fp32",
    *,
    out: tuple[Any, ...],
) -> List:
    """A list of `init_length` zero tensors; Core ML leaves its elements undefined until they are written."""
    declared = out[0].element if isinstance(out[0], ListType) else None
    held = HELD[declared.dtype if isinstance(declared, TensorType) else dtype]
    shape = _element_shape(elem_shape, declared)
    return List((np.zeros(shape, held),) * int(init_length))


def _element_shape(elem_shape: Any, declared: Any) -> tuple[int, ...]:
    given = elem_shape if isinstance(elem_shape, tuple) else tuple(np.atleast_1d(elem_shape))
    if all(not isinstance(d, str) for d in given):
        return tuple(int(d) for d in given)
    # A dimension given by a symbol's name is unknown until an element is written.
    return tuple(d or 0 for d in declared.shape) if isinstance(declared, TensorType) else ()


@op("list_length")
def list_length(ls: List) -> np.ndarray:
    """The number of elements, int32."""
    return np.array(len(ls), np.int32)


def _index(index: Any, length: int) -> int:
    index = int(index)
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of a list of {length}")
    return index % length


@op("list_read", exact=True)
def list_read(ls: List, index: int) -> np.ndarray:
    """The element at `index`."""
    return ls[_index(index, len(ls))]


@op("list_write")
def list_write(ls: List, index: int, value: np.ndarray) -> List:
    """The list with the element at `index` replaced; grows when the index is beyond its end."""
    index = int(index)
    if index < 0 or index > 1 << 24:
        raise IndexError(f"index {index} is out of range")
    filler = (np.zeros_like(value),) * max(0, index + 1 - len(ls))
    grown = (*ls, *filler)
    return List((*grown[:index], value, *grown[index + 1 :]))


@op("list_gather", exact=True)
def list_gather(ls: List, indices: np.ndarray) -> np.ndarray:
    """The elements at `indices`, stacked along a new first dimension."""
    return np.stack([ls[_index(i, len(ls))] for i in np.atleast_1d(indices)])


@op("list_scatter")
def list_scatter(ls: List, indices: np.ndarray, value: np.ndarray) -> List:
    """The list with value[i] written at indices[i]."""
    for i, item in zip(np.atleast_1d(indices), value, strict=True):
        ls = list_write(ls, int(i), item)
    return ls


@op("classify")
def classify(probabilities: np.ndarray, classes: tuple[Any, ...]) -> tuple[Any, dict[Any, float]]:
    """The most probable class (the first of equals) and every class with its probability."""
    flat = probabilities.reshape(-1)
    if flat.size != len(classes):
        raise ValueError(f"{flat.size} probabilities for {len(classes)} classes")
    labels = [c if isinstance(c, str) else int(c) for c in classes]
    return labels[int(np.argmax(flat))], dict(zip(labels, flat.tolist(), strict=True))
