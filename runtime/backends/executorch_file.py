"""What is inside a `.pte`, read from its bytes: which operations run where, and the identity it carries.

A `.pte` is a flatbuffer (schema `program.fbs` of ExecuTorch, identifier `ET12`) followed by segments; a delegate's
segment is again a flatbuffer, in XNNPACK's case (`schema.fbs`) behind a header of 30 bytes. Only the few fields that
are asked for are read, so neither torch nor executorch is needed, and no more of the file than those fields.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DamagedError

# The members of `union XNodeUnion`, from 1 on, without their prefix.
# fmt: off
_XNNPACK_OPERATIONS = (
    "Add", "FullyConnected", "Softmax", "Sigmoid", "StaticTranspose", "Clamp", "Conv2d", "Div",
    "StaticResizeBilinear2D", "StaticConstantPad", "AvgPooling2d", "Minimum", "DepthwiseConv2d", "MaxPooling2d",
    "Multiply", "Subtract", "Floor", "Convert", "GlobalAvgPooling2d", "StaticReshape", "ArgMaxPooling2d",
    "SquareRoot", "Ceiling", "Hardswish", "LeakyReLU", "Maximum", "Negate", "Square", "ELU", "Abs", "PReLU",
    "Concatenate2", "Concatenate3", "Concatenate4", "StaticSlice", "ScaledDotProductAttention", "BatchMatrixMultiply",
    "Concatenate5", "ConvTranspose2d", "ReciprocalSquareRoot", "Log", "Gelu", "Tanh", "Exp", "Sin", "Copy", "Cos",
)
# fmt: on

# Members of `union InstructionArguments` and `union KernelTypes`.
_KERNEL_CALL, _DELEGATE_CALL = 1, 2
_INT, _BOOL, _DOUBLE, _STRING = 1 + 1, 2 + 1, 3 + 1, 5 + 1


@dataclass(frozen=True)
class _Table:
    """A flatbuffer table at an offset of a buffer. Fields are numbered as the schema lists them (a union takes two)."""

    data: Any
    at: int

    def _field(self, index: int) -> int | None:
        vtable = self.at - _read("<i", self.data, self.at)
        if 4 + 2 * index >= _read("<H", self.data, vtable):
            return None
        offset = _read("<H", self.data, vtable + 4 + 2 * index)
        return self.at + offset if offset else None

    def scalar(self, index: int, layout: str, default: Any = 0) -> Any:
        at = self._field(index)
        return default if at is None else _read(f"<{layout}", self.data, at)

    def table(self, index: int) -> _Table | None:
        at = self._field(index)
        return None if at is None else _Table(self.data, at + _read("<I", self.data, at))

    def string(self, index: int) -> str:
        at = self._field(index)
        if at is None:
            return ""
        at += _read("<I", self.data, at)
        length = _read("<I", self.data, at)
        if at + 4 + length > len(self.data):
            raise struct.error("a string runs past the end")
        return bytes(self.data[at + 4 : at + 4 + length]).decode("utf-8", "replace")

    def _vector(self, index: int) -> tuple[int, int]:
        at = self._field(index)
        if at is None:
            return 0, 0
        at += _read("<I", self.data, at)
        return at + 4, _read("<I", self.data, at)

    def tables(self, index: int) -> Iterator[_Table]:
        start, length = self._vector(index)
        for at in range(start, start + 4 * length, 4):
            yield _Table(self.data, at + _read("<I", self.data, at))

    def numbers(self, index: int, layout: str) -> list[int]:
        start, length = self._vector(index)
        width = struct.calcsize(layout)
        return [_read(f"<{layout}", self.data, start + width * place) for place in range(length)]


def _read(layout: str, data: Any, at: int) -> Any:
    if at < 0:
        raise struct.error("an offset points before the start")
    return struct.unpack_from(layout, data, at)[0]


def constants(path: Path) -> dict[str, Any]:
    """What the constant methods of a `.pte` return, by name (`palmtop_identity`, `get_max_seq_len`, ...).

    Raises DamagedError when the file cannot be read as a `.pte`.
    """
    with _opened(path) as program:
        values = {plan.string(0): _constant(plan) for plan in program.root.tables(1)}
    return {name: value for name, value in values.items() if value is not None}


def describe(path: Path) -> dict[str, Any]:
    """What a `.pte` does, for `inspect`.

    Returns:
        `methods`: by name of each method that computes, its `delegates` in order of execution ({`backend`,
        `operations`: count by name}), its `kernels` (count by name of the operations that run one by one, outside of
        delegates), `delegated` (the share of all operations that delegates take, 0..1) and `memory` (bytes planned
        for activations outside of delegates).
        `constants`: what the constant methods return.
        `weights`: bytes of constants in the file.

    Raises DamagedError when the file cannot be read as a `.pte`.
    """
    with _opened(path) as program:
        methods = {plan.string(0): _method(program, plan) for plan in program.root.tables(1) if _instructions(plan)}
        sizes = [segment.scalar(1, "Q") for segment in program.root.tables(4)]
        graphs = {index for plan in program.root.tables(1) for index in _graph_segments(plan)}
        weights = sum(size for index, size in enumerate(sizes) if index not in graphs)
    return {"methods": methods, "constants": constants(path), "weights": weights}


def _method(program: _Program, plan: _Table) -> dict[str, Any]:
    operators = [f"{entry.string(0)}.{entry.string(1)}".rstrip(".") for entry in plan.tables(6)]
    delegates = list(plan.tables(7))
    kernels: Counter[str] = Counter()
    called = []
    for kind, arguments in _instructions(plan):
        if kind == _KERNEL_CALL:
            kernels[operators[arguments.scalar(0, "i")]] += 1
        elif kind == _DELEGATE_CALL:
            called.append(program.delegate(delegates[arguments.scalar(0, "i")]))
    inside = sum(sum(delegate["operations"].values()) for delegate in called)
    return {
        "delegates": called,
        "kernels": dict(sorted(kernels.items())),
        "delegated": inside / max(1, inside + sum(kernels.values())),
        "memory": sum(plan.numbers(8, "q")),
    }


def _instructions(plan: _Table) -> list[tuple[int, _Table]]:
    found = []
    for chain in plan.tables(5):
        for instruction in chain.tables(2):
            arguments = instruction.table(1)
            if arguments is not None:
                found.append((instruction.scalar(0, "B"), arguments))
    return found


def _graph_segments(plan: _Table) -> Iterator[int]:
    for delegate in plan.tables(7):
        processed = delegate.table(1)
        if processed is not None and processed.scalar(0, "b") == 1:
            yield processed.scalar(1, "I")


def _constant(plan: _Table) -> Any:
    """The one primitive that a method without instructions returns; None for anything else."""
    outputs = plan.numbers(4, "i")
    if len(outputs) != 1 or _instructions(plan):
        return None
    value = list(plan.tables(2))[outputs[0]]
    kind, content = value.scalar(0, "B"), value.table(1)
    if content is None:
        return None
    if kind == _STRING:
        return content.string(0)
    layouts = {_INT: "q", _BOOL: "?", _DOUBLE: "d"}
    return content.scalar(0, layouts[kind]) if kind in layouts else None


class _Program:
    """An open `.pte`."""

    def __init__(self, data: Any):
        self._data = data
        if bytes(data[4:8]) != b"ET12":
            raise struct.error("no identifier ET12")
        self.root = _Table(data, _read("<I", data, 0))
        has_header = bytes(data[8:12]) == b"eh00"
        self._segments = _read("<Q", data, 24) if has_header else 0
        if has_header and _read("<I", data, 12) >= 32 and self._segments + _read("<Q", data, 32) > len(data):
            raise struct.error("it is cut short")

    def delegate(self, delegate: _Table) -> dict[str, Any]:
        processed = delegate.table(1)
        backend = delegate.string(0)
        operations: Counter[str] = Counter()
        if backend == "XnnpackBackend" and processed is not None and processed.scalar(0, "b") == 1:
            segment = list(self.root.tables(4))[processed.scalar(1, "I")]
            operations = _xnnpack_operations(self._data, self._segments + segment.scalar(0, "Q"))
        return {"backend": backend, "operations": dict(sorted(operations.items()))}


def _xnnpack_operations(data: Any, start: int) -> Counter[str]:
    if bytes(data[start + 4 : start + 8]) != b"XH00":
        raise struct.error("an XNNPACK delegate without its header")
    graph_at = start + _read("<I", data, start + 10)
    graph = _Table(data, graph_at + _read("<I", data, graph_at))
    names: Counter[str] = Counter()
    for node in graph.tables(1):
        kind = node.scalar(0, "B")
        names[_XNNPACK_OPERATIONS[kind - 1] if 0 < kind <= len(_XNNPACK_OPERATIONS) else f"operation {kind}"] += 1
    return names


class _opened:
    """The program in a file, mapped into memory. Whatever does not read as a `.pte` becomes a DamagedError."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> _Program:
        try:
            self._file = self._path.open("rb")
        except OSError as error:
            raise DamagedError(f"{self._path} cannot be read: {error}.") from error
        try:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            return _Program(self._map)
        except (ValueError, struct.error) as error:
            self._file.close()
            raise self._damaged(error) from error

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._map.close()
        self._file.close()
        if isinstance(error, (struct.error, IndexError)):
            raise self._damaged(error) from error

    def _damaged(self, error: BaseException) -> DamagedError:
        return DamagedError(f"{self._path} is not a whole .pte file ({error}). Copy or export the bundle again.")
