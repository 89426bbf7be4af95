"""MIL value types: what a program declares of each value, and how the interpreter holds it.

Floats narrower than 32 bits are held as float32 arrays whose numbers are representable in the declared type, so that
arithmetic is done in fp32 and rounded once per operation; integers narrower than 8 bits are held in 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DamagedError, UnsupportedError

#: MIL.proto `DataType` -> name used by coremltools and by operations such as `cast`.
DATA_TYPES = {
    1: "bool",
    2: "string",
    10: "fp16",
    11: "fp32",
    12: "fp64",
    13: "bf16",
    21: "int8",
    22: "int16",
    23: "int32",
    24: "int64",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
    34: "uint64",
    35: "uint4",
    36: "uint2",
    37: "uint1",
    38: "uint6",
    39: "uint3",
}
#: Types that Core ML's schema names and nothing can be computed in here.
UNSUPPORTED_TYPES = {40: "fp8e4m3fn", 41: "fp8e5m2"}

_HELD = {
    "bool": np.bool_,
    "string": np.str_,
    "fp16": np.float32,
    "fp32": np.float32,
    "fp64": np.float64,
    "bf16": np.float32,
    "int4": np.int8,
    "uint1": np.uint8,
    "uint2": np.uint8,
    "uint3": np.uint8,
    "uint4": np.uint8,
    "uint6": np.uint8,
}
#: dtype name -> numpy dtype of the array that holds such a value inside the interpreter.
HELD = {name: np.dtype(_HELD.get(name, name)) for name in DATA_TYPES.values()}
#: dtype name -> numpy dtype in which values enter and leave the interpreter.
PUBLIC = HELD | {"fp16": np.dtype(np.float16)}
BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6, "fp16": 16, "bf16": 16}

#: A declared tensor with more elements than this is refused: nothing that fits a phone comes near (64 GiB in fp32).
MAX_ELEMENTS = 2**34
MAX_RANK = 32


@dataclass(frozen=True)
class TensorType:
    """A tensor (rank 0: a scalar): dtype name and shape, with None for a dimension not known until execution.

    `variadic` says that not even the rank is known; the shape is then meaningless.
    """

    dtype: str
    shape: tuple[int | None, ...]
    variadic: bool = False

    @property
    def is_float(self) -> bool:
        return self.dtype in ("fp16", "fp32", "fp64", "bf16")

    @property
    def count(self) -> int:
        """Number of elements; the shape must be fully known."""
        return math.prod(d for d in self.shape if d is not None)

    def __str__(self) -> str:
        dimensions = "..." if self.variadic else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.dtype}[{dimensions}]"


@dataclass(frozen=True)
class ListType:
    """A list of values of one type; `length` None when it may grow."""

    element: Type
    length: int | None

    def __str__(self) -> str:
        return f"list<{self.element}>"


@dataclass(frozen=True)
class DictType:
    key: Type
    value: Type

    def __str__(self) -> str:
        return f"dict<{self.key}, {self.value}>"


@dataclass(frozen=True)
class TupleType:
    items: tuple[Type, ...]

    def __str__(self) -> str:
        return f"tuple<{', '.join(map(str, self.items))}>"


@dataclass(frozen=True)
class StateType:
    """A buffer that outlives one prediction."""

    wrapped: TensorType

    def __str__(self) -> str:
        return f"state<{self.wrapped}>"


Type = TensorType | ListType | DictType | TupleType | StateType


def data_type(number: int, name: str) -> str:
    """The dtype name of a `DataType` number; `name` is the value it belongs to."""
    if number in DATA_TYPES:
        return DATA_TYPES[number]
    if number in UNSUPPORTED_TYPES:
        raise UnsupportedError(f"{name}: data type {UNSUPPORTED_TYPES[number]} is not supported by the interpreter")
    raise DamagedError(f"{name}: unknown data type number {number}")


def _dimension(dimension: Any) -> int | None:
    return int(dimension.constant.size) if dimension.WhichOneof("dimension") == "constant" else None


def read_type(proto: Any, name: str) -> Type:
    """The type in a `ValueType` message. `name` names the value in errors; raises DamagedError."""
    kind = proto.WhichOneof("type")
    if kind == "tensorType":
        tensor = proto.tensorType
        dtype = data_type(tensor.dataType, name)
        if tensor.rank != len(tensor.dimensions) or tensor.rank > MAX_RANK:
            raise DamagedError(f"{name}: declares rank {tensor.rank} with {len(tensor.dimensions)} dimensions")
        variadic = any(d.unknown.variadic for d in tensor.dimensions)
        result = TensorType(dtype, tuple(_dimension(d) for d in tensor.dimensions), variadic)
        if result.count > MAX_ELEMENTS:
            raise DamagedError(f"{name}: declares {result}, more elements than any model can hold")
        return result
    if kind == "listType":
        return ListType(read_type(proto.listType.type, name), _dimension(proto.listType.length))
    if kind == "dictionaryType":
        return DictType(read_type(proto.dictionaryType.keyType, name), read_type(proto.dictionaryType.valueType, name))
    if kind == "tupleType":
        return TupleType(tuple(read_type(t, name) for t in proto.tupleType.types))
    if kind == "stateType":
        wrapped = read_type(proto.stateType.wrappedType, name)
        if not isinstance(wrapped, TensorType) or None in wrapped.shape:
            raise DamagedError(f"{name}: a state must be a tensor of fixed shape, not {wrapped}")
        return StateType(wrapped)
    raise DamagedError(f"{name}: has no type")
