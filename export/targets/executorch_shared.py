"""What a program's own kernels and a delegate both read is stored in a `.pte` once.

A `.pte` keeps the program's constants in one segment, and what a delegate reads in a segment for each piece. A
vocabulary that is a table (read by a kernel) and a head (multiplied in a delegate) would be in the file twice, in small
language models a fifth of it. A segment is a place and a length in the file, and nothing says that two of them must not
overlap: the delegate's is written as a part of the segment of constants. Written for executorch 1.4.1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from executorch.exir._serialize import _program
from executorch.exir.schema import DataSegment

from .executorch_memory import Stored

# What is smaller is not worth looking for.
_LEAST_BYTES = 1 << 16


@contextlib.contextmanager
def stored_once() -> Iterator[None]:
    """Write files so inside the block."""
    extract, encode = _program._extract_named_data, _program._program_to_flatbuffer
    parts: dict[int, tuple[int, int]] = {}  # segment -> where its bytes are among the constants, and how many

    def extract_named_data(program: Any, segments: list[Any], buffers: Any, entries: dict[str, Any]) -> None:
        known = _constants(program, segments)
        inside: dict[int, tuple[int, int]] = {}
        for entry in entries.values():
            buffer = buffers[entry.buffer_index]
            for place, constant in known.get(len(buffer), ()):
                if place % (entry.alignment or 1) == 0 and _equal(buffer, constant):
                    inside[entry.buffer_index] = place, len(buffer)
        left = [b"" if number in inside else buffer for number, buffer in enumerate(buffers)]
        extract(program, segments, left, entries)
        parts.clear()
        for named in program.named_data:
            number = entries[named.key].buffer_index
            if number in inside:
                parts[named.segment_index] = inside[number]

    def program_to_flatbuffer(program: Any, **options: Any) -> Any:
        for number, (place, length) in parts.items():
            constants = program.segments[program.constant_segment.segment_index]
            program.segments[number] = DataSegment(offset=constants.offset + place, size=length)
        parts.clear()
        return encode(program, **options)

    _program._extract_named_data, _program._program_to_flatbuffer = extract_named_data, program_to_flatbuffer
    try:
        yield
    finally:
        _program._extract_named_data, _program._program_to_flatbuffer = extract, encode


def _constants(program: Any, segments: list[Any]) -> dict[int, list[tuple[int, bytes]]]:
    """The program's large constants and where each is in their segment, by length."""
    found: dict[int, list[tuple[int, bytes]]] = {}
    if program.constant_segment is not None and program.constant_segment.offsets:
        place = 0
        for part in segments[program.constant_segment.segment_index].data._buffers:
            if len(part) >= _LEAST_BYTES:
                found.setdefault(len(part), []).append((place, part))
            place += len(part)
    return found


def _equal(one: bytes, other: bytes) -> bool:
    if isinstance(one, Stored) and isinstance(other, Stored) and one.address == other.address:
        return True
    return one[:64] == other[:64] and one == other
