"""States: buffers that a program reads and replaces, and that outlive a prediction (a key-value cache)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import RequestError
from .types import HELD, PUBLIC, TensorType


class Cell:
    """One state. `value` is the array it holds; it is replaced, never written into."""

    def __init__(self, name: str, type: TensorType) -> None:
        self.name = name
        self.type = type
        self.value = np.zeros([d or 0 for d in type.shape], HELD[type.dtype])

    def write(self, value: np.ndarray) -> None:
        if value.shape != self.value.shape or value.dtype != self.value.dtype:
            raise ValueError(f"state {self.name} is {self.type}, not {value.dtype}{list(value.shape)}")
        self.value = value


class State:
    """The states of one sequence of predictions, by name."""

    def __init__(self, cells: dict[str, Cell]) -> None:
        self._cells = cells

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._cells.values())

    @property
    def names(self) -> list[str]:
        return list(self._cells)

    def cell(self, name: str, type: TensorType) -> Cell:
        """The cell that a program calls `name`; raises RequestError when this state belongs to another program."""
        cell = self._cells.get(name)
        if cell is None or cell.type != type:
            raise RequestError(f"the state has no {name} of {type}: it belongs to another program")
        return cell

    def read_state(self, name: str) -> np.ndarray:
        """A copy of the state, in its declared dtype."""
        cell = self._named(name)
        return cell.value.astype(PUBLIC[cell.type.dtype])

    def write_state(self, name: str, value: Any) -> None:
        """Replace the state; `value` must have its shape, and is rounded to its dtype."""
        cell = self._named(name)
        array = np.asarray(value)
        if array.shape != cell.value.shape:
            raise RequestError(f"state {name} has the shape {list(cell.value.shape)}, not {list(array.shape)}")
        cell.value = array.astype(PUBLIC[cell.type.dtype]).astype(HELD[cell.type.dtype])

    def _named(self, name: str) -> Cell:
        if name not in self._cells:
            raise RequestError(f"no state {name!r}; there are {', '.join(self._cells) or 'none'}")
        return self._cells[name]
