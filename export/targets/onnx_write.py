"""An ONNX file written around its weights: protobuf copies each of them twice on the way into a file.

The message is made without them, and they are written where they belong in it. The file is that of `onnx_ir.save`, byte
for byte. Source of the format: protobuf's documentation of its encoding, and `onnx.proto`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

# What is smaller is not worth it, in bytes.
_LEAST_BYTES = 1 << 16
# Numbers of fields: of a model, a graph, and a tensor.
_GRAPH, _INITIALIZER, _NAME, _RAW_DATA = 7, 5, 8, 9
# How many bytes a value of each kind has, where that is not said before it; a varint ends where it says.
_VARINT, _SIZED = 0, 2
_FIXED = {1: 8, 5: 4}

Parts = list[Any]


def write(model: onnx_ir.Model, path: Path) -> None:
    """Write a model and all of its weights to one file."""
    large = {
        str(name): value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= _LEAST_BYTES
    }
    try:
        for name, tensor in large.items():
            model.graph.initializers[name].const_value = _Hollow(tensor)
        message = memoryview(onnx_ir.to_proto(model).SerializeToString())
    finally:
        for name, tensor in large.items():
            model.graph.initializers[name].const_value = tensor
    with path.open("wb") as file:
        for part in _filled(message, large):
            file.write(part)


class _Hollow:
    """A tensor that has everything but its values."""

    def __init__(self, tensor: Any):
        self._tensor = tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)

    def tobytes(self) -> bytes:
        return b""


def _filled(message: memoryview, tensors: Mapping[str, Any]) -> Iterator[Any]:
    """The message of a model in pieces, the values of these initializers in their places."""
    for number, whole, body in _fields(message):
        if number != _GRAPH:
            yield whole
            continue
        pieces: Parts = []
        for inner, field, content in _fields(body):
            pieces += _tensor(content, tensors) if inner == _INITIALIZER else [field]
        yield from _sized(number, pieces)


def _tensor(content: memoryview, tensors: Mapping[str, Any]) -> Parts:
    fields = list(_fields(content))
    name = next((bytes(body).decode() for number, _, body in fields if number == _NAME), "")
    pieces: Parts = []
    for number, whole, body in fields:
        if number == _RAW_DATA and not len(body) and name in tensors:
            pieces += _sized(number, [_values(tensors[name])])
        else:
            pieces.append(whole)
    return _sized(_INITIALIZER, pieces)


def _values(tensor: Any) -> Any:
    """A tensor's bytes, little-endian: its memory itself, where that is how it lies there."""
    array = tensor.numpy()
    if sys.byteorder == "little" and array.flags.c_contiguous and array.nbytes == tensor.nbytes:
        return array.reshape(-1).view(np.uint8).data
    return tensor.tobytes()


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Of each field its number, all of its bytes, and those of its value."""
    place = 0
    while place < len(message):
        start = place
        key, place = _read_varint(message, place)
        kind = key & 7
        if kind == _SIZED:
            size, place = _read_varint(message, place)
            end = place + size
        else:
            end = _read_varint(message, place)[1] if kind == _VARINT else place + _FIXED[kind]
        yield key >> 3, message[start:end], message[place:end]
        place = end


def _sized(number: int, pieces: Parts) -> Parts:
    return [_varint(number << 3 | _SIZED) + _varint(sum(map(len, pieces))), *pieces]


def _read_varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
