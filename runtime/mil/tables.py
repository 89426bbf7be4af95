"""Functions of one half-precision value, by table.

A value declared fp16 is one of 65,536, so that a function of it that is rounded to fp16 again is a table. Looking
results up costs less than evaluating most functions in fp32 and rounding, and gives the same numbers: the table is
filled by the function and the rounding that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .rounding import round_fp16

_BLOCK = 1 << 15
# The upper 19 bits of a float32 (sign, exponent, 10 bits of mantissa) tell all values of fp16 apart.
_SHIFT = 13
_MANY = 4096  # for fewer values a table is not worth a look


def _fill(function: Callable[..., Any], parameters: dict[str, Any]) -> np.ndarray:
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    table = np.full(1 << (32 - _SHIFT), np.nan, np.float32)
    table[values.view(np.uint32) >> _SHIFT] = round_fp16(function(x=values, **parameters))
    return table


def tabulated(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """`function(x, **parameters)`, elementwise in `x`, for fp16 values held as float32 and results rounded to fp16.

    The parameters must be the same in every call. The table is filled at the first call with many values.
    """
    filled: list[np.ndarray] = []

    def look_up(x: np.ndarray, **parameters: Any) -> np.ndarray:
        x = np.asarray(x)
        if x.size < _MANY:
            return round_fp16(np.asarray(function(x=x, **parameters), np.float32))
        if not filled:
            filled.append(_fill(function, parameters))
        flat = np.ascontiguousarray(x).reshape(-1).view(np.uint32)
        result = np.empty(flat.size, np.float32)
        places = np.empty(min(_BLOCK, flat.size), np.intp)
        for start in range(0, flat.size, _BLOCK):
            part = flat[start : start + _BLOCK]
            where = places[: part.size]
            np.right_shift(part, np.uint32(_SHIFT), out=where, casting="unsafe")
            filled[0].take(where, out=result[start : start + _BLOCK], mode="clip")
        return result.reshape(x.shape)

    return look_up
