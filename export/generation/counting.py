"""Positions counted from a number that is an input of the program.

Models make the positions of new tokens as a range, or a slice of a table, that begins at the number of tokens so far.
PyTorch takes tensors there by reading them, which a program cannot be made of: the number of new tokens is known, so
the same positions are a range from 0 with that number added.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_SUMS = (torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__)
_BEYOND = (torch.gt, torch.Tensor.gt, torch.Tensor.__gt__)


class CountedFrom(TorchFunctionMode):
    """Inside the block, `arange(start, start + n)` and `table[:, start : start + n]` are made without reading `start`.

    Whether `start + n` is beyond a limit (where a table ends, say) is answered where every start has the same answer.

    Args:
        start: (1,), int64. What it is added to must be a size, not another tensor.
        most: how large it may be.
    """

    def __init__(self, start: torch.Tensor, most: int | torch.SymInt):
        super().__init__()
        self.start, self.most = start, most
        self._beyond: list[tuple[torch.Tensor, Any]] = [(start, 0)]

    def __enter__(self) -> CountedFrom:
        self._range = torch.arange
        torch.arange = self._arange  # which refuses tensors before any mode sees the call
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        torch.arange = self._range
        super().__exit__(*raised)

    def _arange(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        count = self._between(*args) if len(args) == 2 else None
        return self._range(*args, **kwargs) if count is None else self._range(count, **kwargs) + self.start

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.__getitem__:
            found = self._sliced(*args)
            if found is not None:
                return found
        if func in _BEYOND and len(args) == 2 and isinstance(args[1], int):
            before = self._number(args[0])
            if before is not None and before + self.most <= args[1]:
                return False
        result = func(*args, **kwargs)
        if func in _SUMS and len(args) == 2:
            first, second = args if isinstance(args[0], torch.Tensor) else reversed(args)
            before = self._number(first)
            if before is not None and isinstance(second, (int, torch.SymInt)):
                self._beyond.append((result, before + second))
        return result

    def _sliced(self, table: torch.Tensor, places: Any) -> torch.Tensor | None:
        places = places if isinstance(places, tuple) else (places,)
        counted = [axis for axis, place in enumerate(places) if isinstance(place, slice) and self._counts(place)]
        if len(counted) != 1 or any(place is None or place is Ellipsis for place in places[: counted[0]]):
            return None
        (axis,) = counted
        count = self._between(places[axis].start, places[axis].stop)
        taken = table.index_select(axis, torch.arange(count) + self.start)
        return taken[tuple(slice(None) if place is places[axis] else place for place in places)]

    def _counts(self, place: slice) -> bool:
        return place.step is None and self._between(place.start, place.stop) is not None

    def _between(self, first: Any, last: Any) -> Any:
        """How many positions lie between two numbers that are both counted from the start; None: not so."""
        one, other = self._number(first), self._number(last)
        return None if one is None or one != 0 or other is None else other

    def _number(self, value: Any) -> Any:
        return next((number for tensor, number in self._beyond if tensor is value), None)
