"""Constants of a program: inline values and weights, read from the specification when they are first needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import DamagedError
from .blobs import decode, stored_bytes
from .package import Package
from .types import BITS, HELD, ListType, TensorType, Type, read_type

#: dtype name -> field of `TensorValue` that holds it inline.
_FIELDS = {
    "bool": "bools",
    "string": "strings",
    "fp32": "floats",
    "fp64": "doubles",
    "int16": "ints",
    "uint16": "ints",
    "int32": "ints",
    "int64": "longInts",
    "uint64": "longInts",
}
_IN_BYTES = {"int8", "uint8", "uint32", *BITS}


def _inline(tensor: Any, type: TensorType, name: str) -> np.ndarray:
    count, field = type.count, tensor.WhichOneof("value")
    if field == "bytes" and type.dtype in _IN_BYTES:
        raw = np.frombuffer(tensor.bytes.values, np.uint8)
        if raw.size != stored_bytes(type.dtype, count):
            raise DamagedError(f"constant {name}: {raw.size} bytes do not make {type}")
        return decode(raw, type.dtype, count)
    if field != _FIELDS.get(type.dtype) and not (field == "ints" and type.dtype == "uint32"):
        raise DamagedError(f"constant {name}: values stored as {field} cannot be {type}")
    values = getattr(tensor, field).values
    if len(values) != count:
        raise DamagedError(f"constant {name}: {len(values)} values do not make {type}")
    if type.dtype == "string":
        return np.array(list(values), dtype=object)
    return np.array(values, dtype=np.int64 if field == "ints" else None).astype(HELD[type.dtype])


def _shaped(flat: np.ndarray, type: TensorType) -> Any:
    """An array; for rank 0 a numpy scalar, or `str`."""
    if type.shape:
        return flat.reshape(type.shape)
    return flat[0] if type.dtype == "string" else flat.reshape(())[()]


def constant(value: Any, name: str, package: Package) -> tuple[Type, Callable[[], Any]]:
    """Check the `Value` message of constant `name` and give its type and a function that reads it.

    Weights are checked against their file here and decoded when the function is called. Raises DamagedError.
    """
    type = read_type(value.type, f"constant {name}")
    kind = value.WhichOneof("value")
    if isinstance(type, TensorType) and None in type.shape:
        raise DamagedError(f"constant {name}: its declared type {type} has unknown dimensions")
    if kind == "blobFileValue" and isinstance(type, TensorType):
        tensor_type = type
        raw = package.blob(value.blobFileValue.fileName).read(value.blobFileValue.offset, tensor_type, name)
        return type, lambda: _shaped(decode(raw, tensor_type.dtype, tensor_type.count), tensor_type)
    immediate = value.immediateValue.WhichOneof("value") if kind == "immediateValue" else None
    if immediate == "tensor" and isinstance(type, TensorType):
        result = _shaped(_inline(value.immediateValue.tensor, type, name), type)
        return type, lambda: result
    if immediate == "list" and isinstance(type, ListType):
        items = tuple(constant(v, name, package)[1]() for v in value.immediateValue.list.values)
        return type, lambda: items
    raise DamagedError(f"constant {name}: has no readable value for {type}")
