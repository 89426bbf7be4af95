"""Functions of two tensors with broadcasting. Formulas: coremltools' iOS15/elementwise_binary.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..registry import op

_ROUNDED: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "mul": np.multiply,
    "sub": np.subtract,
}
_EXACT: dict[str, Callable[..., Any]] = {
    "equal": np.equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "not_equal": np.not_equal,
}


def _register(name: str, function: Callable[..., Any], exact: bool) -> None:
    def run(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return function(x, y)

    op(name, exact=exact)(run)


# Integer overflow wraps around (two's complement): undocumented by Apple, and what its CPUs do.
for _name, _function in _ROUNDED.items():
    _register(_name, _function, exact=False)
for _name, _function in _EXACT.items():
    _register(_name, _function, exact=True)


def _truncated_quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Integer division toward zero, as C does and Core ML's `real_div` on int32; 0 where y is 0."""
    quotient = np.floor_divide(x, y)
    return quotient + ((quotient < 0) & (quotient * y != x)).astype(quotient.dtype)


@op("real_div")
def real_div(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x / y; for integers the quotient is cut toward zero."""
    if np.asarray(x).dtype.kind in "iu":
        return _truncated_quotient(x, y)
    return np.true_divide(x, y)


@op("floor_div")
def floor_div(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """floor(x / y)"""
    return np.floor_divide(x, y)


@op("mod")
def mod(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x - floor(x / y) * y: the sign of y, as Python's remainder."""
    return np.mod(x, y)


@op("pow")
def power(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x ** y. A negative base with a broken exponent gives NaN; integers go through fp64 and are truncated."""
    x = np.asarray(x)
    if x.dtype.kind in "iu":
        return np.trunc(np.power(x.astype(np.float64), y)).astype(x.dtype)
    if np.ndim(y) == 0 and y == 2:
        return np.square(x)
    return np.power(x, y)
