"""Weight files: what coremltools calls MILBlob storage, version 2, read through a memory map.

Layout (little-endian; `mlmodel/src/MILBlob/Blob/StorageFormat.hpp` in coremltools): a 64-byte header (u32 count, u32
version); then blobs, each a 64-byte record (u32 sentinel, u32 data type, u64 size in bytes, u64 offset of the data, u64
padding in bits) and its data, both aligned to 64 bytes. Values narrower than a byte are packed from the low bit up.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np

from ..errors import DamagedError
from .types import BITS, TensorType

_SENTINEL = 0xDEADBEEF
_HEADER = struct.Struct("<II")
_RECORD = struct.Struct("<IIQQQ")
_ALIGNMENT = 64

#: Record data type -> dtype name.
_BLOB_TYPES = {
    1: "fp16",
    2: "fp32",
    3: "uint8",
    4: "int8",
    5: "bf16",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
    16: "fp8e4m3fn",
    17: "fp8e5m2",
}


def stored_bytes(dtype: str, count: int) -> int:
    """Bytes that `count` values of `dtype` take, packed."""
    if dtype in BITS:
        return (count * BITS[dtype] + 7) // 8
    return count * np.dtype(dtype.replace("fp", "float")).itemsize


def unpack(packed: np.ndarray, dtype: str, count: int) -> np.ndarray:
    """`count` values narrower than a byte from bytes packed low bit first: (count,) uint8, or int8 when signed."""
    bits = BITS[dtype]
    if bits in (1, 2, 4):
        per_byte = 8 // bits
        shifts = np.arange(per_byte, dtype=np.uint8) * bits
        values = ((packed[:, None] >> shifts) & np.uint8(2**bits - 1)).reshape(-1)[:count]
    else:
        every = np.unpackbits(packed, bitorder="little")[: count * bits].reshape(count, bits)
        values = (every << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    if dtype.startswith("int"):
        return (values << (8 - bits)).view(np.int8) >> (8 - bits)
    return values


def decode(raw: np.ndarray, dtype: str, count: int) -> np.ndarray:
    """Values from the bytes of a blob or of an inline constant: (count,) in the held dtype.

    fp32, int8 and wider integers are views of `raw`; narrower ones are expanded.
    """
    if dtype == "fp16":
        return raw.view("<f2").astype(np.float32)
    if dtype == "bf16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype in BITS:
        return unpack(raw, dtype, count)
    if dtype == "bool":
        return raw != 0
    return raw.view(np.dtype(dtype.replace("fp", "float")).newbyteorder("<"))


class BlobFile:
    """One mapped weight file. `read` gives views into the map; nothing is copied until values are decoded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        except (OSError, ValueError) as error:
            raise DamagedError(f"cannot map the weight file {path}: {error}") from error
        if self._map.size < _ALIGNMENT:
            raise DamagedError(f"{path}: {self._map.size} bytes is too short for a weight file: it is truncated")
        _, version = _HEADER.unpack(self._map[: _HEADER.size].tobytes())
        if version != 2:
            raise DamagedError(f"{path}: weight file version {version}, expected 2: the file is altered")

    def read(self, offset: int, type: TensorType, name: str) -> np.ndarray:
        """The bytes of the blob whose record is at `offset`, checked against the declared `type` of constant `name`."""
        where = f"constant {name}: weight file {self.path.name}, offset {offset}"
        size = self._map.size
        if offset < _ALIGNMENT or offset % _ALIGNMENT or offset + _ALIGNMENT > size:
            raise DamagedError(f"{where}: no record can be there in a file of {size} bytes")
        record = self._map[offset : offset + _RECORD.size].tobytes()
        sentinel, number, nbytes, data, padding = _RECORD.unpack(record)
        if sentinel != _SENTINEL:
            raise DamagedError(f"{where}: no blob record there; the weights are altered or belong to another model")
        stored = _BLOB_TYPES.get(number, f"type number {number}")
        if stored != type.dtype:
            raise DamagedError(f"{where}: holds {stored}, but {type} is declared")
        expected = stored_bytes(type.dtype, type.count)
        if nbytes != expected or padding >= 8:
            raise DamagedError(f"{where}: holds {nbytes} bytes, but {type} needs {expected}")
        if data % _ALIGNMENT or data < offset + _ALIGNMENT or data + nbytes > size:
            raise DamagedError(
                f"{where}: its {nbytes} bytes at {data} leave the file of {size} bytes; the weights are truncated"
            )
        return self._map[data : data + nbytes]
