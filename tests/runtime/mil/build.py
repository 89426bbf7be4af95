"""Writes small `.mlpackage`s operation by operation, so that tests of the interpreter need no converter."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from palmtop.runtime.mil.schema import MESSAGES, Model
from palmtop.runtime.mil.types import BITS, DATA_TYPES

NUMBERS = {name: number for number, name in DATA_TYPES.items()}
BLOB_NUMBERS = {"fp16": 1, "fp32": 2, "uint8": 3, "int8": 4, "int4": 8, "uint1": 9, "uint2": 10, "uint4": 11} | {
    "uint3": 12,
    "uint6": 13,
    "int32": 14,
}
ARRAY_NUMBERS = {"fp16": 65552, "fp32": 65568, "int32": 131104}
_DTYPES = {"float16": "fp16", "float32": "fp32", "bool": "bool"}


def set_type(message: Any, dtype: str, shape: tuple[int | None, ...]) -> None:
    message.tensorType.dataType = NUMBERS[dtype]
    message.tensorType.rank = len(shape)
    for d in shape:
        dimension = message.tensorType.dimensions.add()
        if d is None:
            dimension.unknown.variadic = False
        else:
            dimension.constant.size = d


def pack(values: np.ndarray, dtype: str) -> bytes:
    """Values as they are stored; narrower than a byte, low bit first."""
    if dtype not in BITS or dtype == "fp16":
        return np.ascontiguousarray(values).tobytes()
    bits = BITS[dtype]
    every = (values.reshape(-1, 1).astype(np.int64) >> np.arange(bits)) & 1
    return np.packbits(every.astype(np.uint8), bitorder="little").tobytes()


def literal(value: Any, dtype: str | None = None) -> Any:
    """A `Value` message with the value inside it: a string, a list of strings or integers, or an array."""
    message = MESSAGES["Value"]()
    if isinstance(value, list):
        for item in value:
            message.immediateValue.list.values.append(literal(item, "string" if isinstance(item, str) else "int64"))
        set_type(message.type.listType.type, "string" if isinstance(value[0], str) else "int64", ())
        message.type.listType.length.constant.size = len(value)
        return message
    if isinstance(value, str):
        set_type(message.type, "string", ())
        message.immediateValue.tensor.strings.values.append(value)
        return message
    if isinstance(value, bool | int | float):
        value = np.array(value, {bool: np.bool_, int: np.int32, float: np.float32}[type(value)])
    value = np.asarray(value)
    dtype = dtype or _DTYPES.get(value.dtype.name, value.dtype.name)
    set_type(message.type, dtype, value.shape)
    tensor = message.immediateValue.tensor
    field = {"fp32": "floats", "int32": "ints", "bool": "bools", "int16": "ints", "uint16": "ints", "int64": "longInts"}
    if dtype in field:
        getattr(tensor, field[dtype]).SetInParent()
        getattr(tensor, field[dtype]).values.extend(value.reshape(-1).tolist())
    else:
        tensor.bytes.values = pack(value, dtype)
    return message


class Builder:
    """One function of a program. `op` appends an operation and gives the name of its (first) output."""

    def __init__(self, opset: str = "CoreML8") -> None:
        self.model = Model(specificationVersion=9)
        self.model.mlProgram.version = 1
        self.function = self.model.mlProgram.functions["main"]
        self.function.opset = opset
        self.block = self.function.block_specializations[opset]
        self.weights = bytearray(struct.pack("<II", 0, 2) + bytes(56))
        self.count = 0

    def input(self, name: str, dtype: str, shape: tuple[int | None, ...], default: tuple[int, ...] = ()) -> str:
        entry = self.function.inputs.add(name=name)
        set_type(entry.type, dtype, shape)
        array = self.model.description.input.add(name=name).type.multiArrayType
        array.dataType = ARRAY_NUMBERS[dtype]
        array.shape.extend(default or [d or 1 for d in shape] or [1])
        return name

    def state(self, name: str, shape: tuple[int, ...]) -> str:
        set_type(self.function.inputs.add(name=name).type.stateType.wrappedType, "fp16", shape)
        array = self.model.description.state.add(name=name).type.stateType.arrayType
        array.dataType = ARRAY_NUMBERS["fp16"]
        array.shape.extend(shape)
        return name

    def blob(self, values: np.ndarray, dtype: str | None = None) -> Any:
        """A `Value` message that refers to the weight file, to which the values are appended."""
        dtype = dtype or _DTYPES.get(values.dtype.name, values.dtype.name)
        data, offset = pack(values, dtype), len(self.weights)
        record = struct.pack("<IIQQQ", 0xDEADBEEF, BLOB_NUMBERS[dtype], len(data), offset + 64, 0)
        self.weights += record.ljust(64, b"\0") + data + bytes(-len(data) % 64)
        message = MESSAGES["Value"]()
        set_type(message.type, dtype, values.shape)
        message.blobFileValue.fileName = "@model_path/weights/weight.bin"
        message.blobFileValue.offset = offset
        return message

    def const(self, value: Any, dtype: str | None = None, *, block: Any = None) -> str:
        value = value if isinstance(value, MESSAGES["Value"]) else literal(value, dtype)
        self.count += 1
        name = f"const_{self.count}"
        operation = (block or self.block).operations.add(type="const")
        operation.attributes["val"].CopyFrom(value)
        operation.outputs.add(name=name).type.CopyFrom(value.type)
        return name

    def op(
        self,
        type: str,
        out: str | tuple[str, tuple[int | None, ...]] | list[tuple[str, tuple[int | None, ...]]],
        *,
        name: str = "",
        block: Any = None,
        **inputs: Any,
    ) -> str:
        """Append `type`; `out` is (dtype, shape) of its output, or a list of them. Inputs: names, or constants."""
        block = block or self.block
        bindings: dict[str, list[Any]] = {}
        for key, value in inputs.items():
            several = value if isinstance(value, tuple) else (value,)
            bindings[key] = [v if isinstance(v, str | MESSAGES["Value"]) else literal(v) for v in several]
        self.count += 1
        name = name or f"{type}_{self.count}"
        operation = block.operations.add(type=type)
        operation.attributes["name"].CopyFrom(literal(name))
        for key, values in bindings.items():
            for value in values:
                if isinstance(value, str):
                    operation.inputs[key].arguments.add(name=value)
                else:
                    operation.inputs[key].arguments.add().value.CopyFrom(value)
        outputs = out if isinstance(out, list) else [out]
        for i, (dtype, shape) in enumerate(outputs):
            set_type(operation.outputs.add(name=name if i == 0 else f"{name}_{i}").type, dtype, shape)
        return name

    def save(self, path: Path, *outputs: str) -> Path:
        """Write the package with these values as its outputs."""
        self.block.outputs.extend(outputs)
        declared = {o.name: o.type for operation in self.block.operations for o in operation.outputs}
        declared |= {i.name: i.type for i in self.function.inputs}
        described = {o.name for o in self.model.description.output}
        for name in outputs:
            if name not in described:
                array = self.model.description.output.add(name=name).type.multiArrayType
                array.dataType = ARRAY_NUMBERS.get(DATA_TYPES[declared[name].tensorType.dataType], 131104)
        return write(path, self.model.SerializeToString(), bytes(self.weights))


def write(path: Path, model: bytes, weights: bytes) -> Path:
    """An `.mlpackage` folder with a model and a weight file."""
    folder = path / "Data" / "com.apple.CoreML"
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "model.mlmodel").write_bytes(model)
    (folder / "weights" / "weight.bin").write_bytes(weights)
    entries = {
        "A": {"path": "com.apple.CoreML/model.mlmodel", "name": "model.mlmodel", "author": "com.apple.CoreML"},
        "B": {"path": "com.apple.CoreML/weights", "name": "weights", "author": "com.apple.CoreML"},
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": "A"}
    (path / "Manifest.json").write_text(json.dumps(manifest), "utf-8")
    return path
