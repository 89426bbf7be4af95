"""Functions of one tensor, element by element. Formulas: coremltools' iOS15/elementwise_unary.py and iOS17."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import mathematics
from ..registry import op
from ..types import HELD, TensorType

_ROUNDED: dict[str, Callable[..., Any]] = {
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "cos": np.cos,
    "cosh": np.cosh,
    "exp": np.exp,
    "exp2": np.exp2,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
}
# `round` takes ties to even: "0.5 is rounded to 0", and coremltools infers it with np.round.
_EXACT: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "ceil": np.ceil,
    "floor": np.floor,
    "logical_not": np.logical_not,
    "round": np.round,
    "sign": np.sign,
}


def _register(name: str, function: Callable[..., Any], exact: bool, pointwise: bool) -> None:
    def run(x: np.ndarray) -> np.ndarray:
        y = function(x)
        return y if y.dtype == x.dtype else y.astype(x.dtype)

    op(name, exact=exact, pointwise=pointwise)(run)


for _name, _function in _ROUNDED.items():
    _register(_name, _function, exact=False, pointwise=_name not in ("sqrt", "square"))
for _name, _function in _EXACT.items():
    _register(_name, _function, exact=True, pointwise=False)


@op("erf", pointwise=True)
def erf(x: np.ndarray) -> np.ndarray:
    """The error function."""
    return mathematics.erf(x)


@op("inverse", pointwise=True)
def inverse(x: np.ndarray, epsilon: float = 1e-4) -> np.ndarray:
    """1 / (x + epsilon)"""
    return 1 / (x + epsilon)


@op("log", pointwise=True)
def log(x: np.ndarray, epsilon: float = 1e-45) -> np.ndarray:
    """log(x + epsilon)"""
    return np.log(x + epsilon)


@op("rsqrt", pointwise=True)
def rsqrt(x: np.ndarray, epsilon: float = 1e-12) -> np.ndarray:
    """1 / sqrt(x + epsilon)"""
    return 1 / np.sqrt(x + epsilon)


@op("clip", exact=True)
def clip(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """min(max(x, alpha), beta)"""
    return np.minimum(np.maximum(x, alpha), beta)


@op("threshold", exact=True)
def threshold(x: np.ndarray, alpha: float) -> np.ndarray:
    """max(x, alpha)"""
    return np.maximum(x, alpha)


@op("cast", exact=True)
def cast(x: np.ndarray, dtype: str, *, out: tuple[TensorType, ...]) -> np.ndarray:
    """x in another dtype.

    Floats become integers by truncation. What Core ML does beyond the range of the integer is not documented; here the
    value saturates (fp32 to int32 on Apple's CPUs, FCVTZS, saturates too) and NaN gives 0. Between integers, bits are
    cut off.
    """
    if HELD[out[0].dtype] != HELD.get(dtype):
        raise ValueError(f"casts to {dtype}, but declares {out[0].dtype}")
    held = HELD[dtype]
    x = np.asarray(x)
    if held.kind == "b":
        return x != 0
    if held.kind in "iu" and x.dtype.kind == "f":
        limits = np.iinfo(held)
        wide = np.nan_to_num(np.trunc(x.astype(np.float64)), nan=0.0, posinf=limits.max, neginf=limits.min)
        return np.clip(wide, limits.min, limits.max).astype(held)
    return x.astype(held, copy=False)
