"""Which operations an ONNX file holds, read from its bytes: the runtime does without the `onnx` package.

An ONNX file is a protobuf message (`onnx.proto`): `ModelProto.graph` is field 7, `GraphProto.node` field 1,
`NodeProto.op_type` field 4 and `NodeProto.domain` field 7. Weights are skipped, never read.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..errors import DamagedError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def operations(path: Path) -> dict[str, int]:
    """Count of each operation of the main graph by name (`domain::name` outside of the standard domain).

    Raises DamagedError when the file is not a protobuf message.
    """
    counts: Counter[str] = Counter()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for number, start, end in _fields(data, 0, len(data)):
                if number != 7:
                    continue
                for kind, node_start, node_end in _fields(data, start, end):
                    if kind == 1:
                        counts[_operation(data, node_start, node_end)] += 1
    except (OSError, ValueError, IndexError) as error:
        raise DamagedError(f"{path} cannot be read as an ONNX model: {error}.") from error
    return dict(counts.most_common())


def _operation(data: mmap.mmap, start: int, end: int) -> str:
    strings = {number: data[at:stop] for number, at, stop in _fields(data, start, end) if number in (4, 7)}
    name, domain = strings.get(4, b"?").decode("utf-8", "replace"), strings.get(7, b"").decode("utf-8", "replace")
    return f"{domain}::{name}" if domain else name


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each length-delimited field of a message; other fields are passed over."""
    while at < end:
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            _, at = _varint(data, at)
        elif wire == _BYTES:
            length, at = _varint(data, at)
            if at + length > end:
                raise ValueError("a field runs past the end of its message")
            yield key >> 3, at, at + length
            at += length
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
