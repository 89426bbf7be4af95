"""From what an operation returns to a value of its declared type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import UnsupportedError
from .rounding import round_fp16
from .types import HELD, TensorType, Type


class TypeMismatch(ValueError):
    """An operation computed something else than the program declares."""


def _float(value: Any) -> np.ndarray:
    if type(value) is np.ndarray and value.dtype == np.float32:
        return value
    array = np.asarray(value)
    if array.dtype.kind != "f":
        raise TypeMismatch(f"declares a float, but computes {array.dtype}")
    return array.astype(np.float32)


def _rounded(value: Any) -> np.ndarray:
    return round_fp16(_float(value))


def _other(dtype: np.dtype) -> Callable[[Any], Any]:
    def finish(value: Any) -> np.ndarray:
        if type(value) is np.ndarray and value.dtype == dtype:
            return value
        array = np.asarray(value)
        if array.dtype.kind not in ("iu" if dtype.kind in "iu" else dtype.kind):
            raise TypeMismatch(f"declares {dtype}, but computes {array.dtype}")
        return array.astype(dtype)

    return finish


def _same(value: Any) -> Any:
    return value


def _shape_checked(finish: Callable[[Any], Any], declared: tuple[int | None, ...]) -> Callable[[Any], Any]:
    known = tuple((i, d) for i, d in enumerate(declared) if d is not None)
    rank = len(declared)

    def checked(value: Any) -> Any:
        value = finish(value)
        shape = value.shape
        if shape != declared and (len(shape) != rank or any(shape[i] != d for i, d in known)):
            raise TypeMismatch(f"declares the shape {declared}, but computes {shape}")
        return value

    return checked


def finisher(type: Type, *, exact: bool) -> Callable[[Any], Any]:
    """A function that turns a computed value into one of the declared `type`.

    Floats are rounded to fp16 where that is declared, unless `exact`. Raises TypeMismatch when the kind (float,
    integer, boolean) or the known dimensions are not the declared ones.
    """
    if not isinstance(type, TensorType) or type.dtype == "string":
        return _same
    if type.dtype == "bf16":
        raise UnsupportedError("values of type bf16 are not part of any opset")
    if type.dtype == "fp16":
        finish: Callable[[Any], Any] = _float if exact else _rounded
    elif type.dtype == "fp32":
        finish = _float
    else:
        finish = _other(HELD[type.dtype])
    return finish if type.variadic else _shape_checked(finish, type.shape)
