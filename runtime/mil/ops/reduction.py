"""Reductions. Formulas: coremltools' iOS15/reduction.py and iOS17/reduction.py; integers stay integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..registry import op
from ..types import TensorType


def _l1_norm(x: np.ndarray, **how: Any) -> np.ndarray:
    return np.sum(np.abs(x), **how)


def _l2_norm(x: np.ndarray, **how: Any) -> np.ndarray:
    return np.sqrt(np.sum(np.square(x), **how))


def _log_sum(x: np.ndarray, **how: Any) -> np.ndarray:
    return np.log(np.sum(x, **how))


def _log_sum_exp(x: np.ndarray, axis: tuple[int, ...] | None, keepdims: bool) -> np.ndarray:
    top = np.max(x, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)  # all -inf: log(0), not NaN
    total = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return total if keepdims else np.squeeze(total, axis=axis)


def _sum_square(x: np.ndarray, **how: Any) -> np.ndarray:
    return np.sum(np.square(x), **how)


_BY_AXES: dict[str, tuple[Callable[..., Any], bool]] = {
    "reduce_l1_norm": (_l1_norm, False),
    "reduce_l2_norm": (_l2_norm, False),
    "reduce_log_sum": (_log_sum, False),
    "reduce_log_sum_exp": (_log_sum_exp, False),
    "reduce_max": (np.max, True),
    "reduce_mean": (np.mean, False),
    "reduce_min": (np.min, True),
    "reduce_prod": (np.prod, False),
    "reduce_sum": (np.sum, False),
    "reduce_sum_square": (_sum_square, False),
}


def _register(name: str, function: Callable[..., Any], exact: bool) -> None:
    def run(x: np.ndarray, axes: np.ndarray | None = None, keep_dims: bool = False) -> np.ndarray:
        axis = None if axes is None else tuple(int(a) for a in np.atleast_1d(axes))
        y = np.asarray(function(x, axis=axis, keepdims=bool(keep_dims)))
        return y if y.dtype == x.dtype else y.astype(x.dtype)

    op(name, exact=exact)(run)


for _name, (_function, _exact) in _BY_AXES.items():
    _register(_name, _function, _exact)


def _register_arg(name: str, function: Callable[..., Any]) -> None:
    def run(
        x: np.ndarray,
        axis: int = -1,
        keep_dims: bool = False,
        output_dtype: str = "int32",
        *,
        out: tuple[TensorType, ...],
    ) -> np.ndarray:
        return function(x, axis=int(axis), keepdims=bool(keep_dims)).astype(out[0].dtype)

    op(name)(run)


# Ties: the first index, as in numpy and PyTorch; Core ML guarantees none.
_register_arg("reduce_argmax", np.argmax)
_register_arg("reduce_argmin", np.argmin)
