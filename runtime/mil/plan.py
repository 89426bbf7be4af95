"""Compiling a function of an ML Program into a flat list of steps over numbered slots.

Names, argument bindings, opset versions, declared types and lifetimes are all resolved here, once, so that executing a
step costs little more than calling its function. Anything wrong with the program is found here as well, before a number
is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import DamagedError, UnsupportedError
from . import ops
from .finish import finisher
from .package import Package
from .registry import OPERATIONS, OPSETS, Operation, find
from .tables import tabulated
from .types import StateType, TensorType, Type, read_type
from .values import constant

assert ops  # importing the package registers the operations


@dataclass(frozen=True)
class OperationInfo:
    """What the package says of one operation, for listings and reports."""

    name: str
    type: str
    inputs: dict[str, tuple[str, ...]]
    outputs: tuple[tuple[str, Type], ...]
    attributes: dict[str, Any]


@dataclass
class Step:
    """One operation, ready to run: argument slots by parameter, output slots with what finishes their values."""

    info: OperationInfo
    run: Callable[..., Any] | None  # None: control flow
    run_wide: Callable[..., Any] | None  # the same when values declared fp16 are left unrounded
    arguments: tuple[tuple[str, int], ...]
    lists: tuple[tuple[str, tuple[int, ...]], ...]
    static: dict[str, Any]
    outputs: tuple[int, ...]
    finish: tuple[Callable[[Any], Any], ...]  # to the declared types
    finish_wide: tuple[Callable[[Any], Any], ...]  # the same without rounding to half precision
    blocks: tuple[Block, ...] = ()
    frees: tuple[int, ...] = ()


@dataclass
class Block:
    inputs: tuple[int, ...]
    steps: list[Step]
    outputs: tuple[int, ...]


@dataclass
class Plan:
    """A compiled function. `constants` maps slots to functions that read (and decompress) a constant."""

    inputs: dict[str, tuple[int, Type]]
    body: Block
    output_names: tuple[str, ...]
    output_types: tuple[Type, ...]
    slots: int
    constants: dict[int, Callable[[], Any]]
    operations: tuple[OperationInfo, ...]


@dataclass
class _Scope:
    """Names visible in a block."""

    names: dict[str, tuple[int, Type]] = field(default_factory=dict)
    parent: _Scope | None = None

    def look_up(self, name: str) -> tuple[int, Type] | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return None


class Compiler:
    """Compiles one function message; `compile` gives the plan."""

    def __init__(self, package: Package, opset: str) -> None:
        if opset not in OPSETS:
            raise UnsupportedError(f"opset {opset!r}: the interpreter knows {', '.join(OPSETS)}")
        self.package = package
        self.opset_name = opset
        self.opset = OPSETS[opset]
        self.slots = 0
        self.constants: dict[int, Callable[[], Any]] = {}
        self.literals: dict[int, Any] = {}
        self.infos: list[OperationInfo] = []

    def compile(self, function: Any) -> Plan:
        scope = _Scope()
        inputs = {}
        for entry in function.inputs:
            inputs[entry.name] = self._define(scope, entry.name, read_type(entry.type, f"input {entry.name}"))
        body = self._block(function.block_specializations[function.opset], scope)
        types = [self._resolve(scope, name, "outputs of the program")[1] for name in body_names(function)]
        return Plan(
            inputs, body, tuple(body_names(function)), tuple(types), self.slots, self.constants, tuple(self.infos)
        )

    def _define(self, scope: _Scope, name: str, type: Type) -> tuple[int, Type]:
        if name in scope.names:
            raise DamagedError(f"value {name} is defined twice")
        scope.names[name] = self.slots, type
        self.slots += 1
        return scope.names[name]

    def _resolve(self, scope: _Scope, name: str, user: str) -> tuple[int, Type]:
        found = scope.look_up(name)
        if found is None:
            raise DamagedError(f"{user} refers to {name!r}, which nothing defines before it")
        return found

    def _block(self, proto: Any, scope: _Scope) -> Block:
        """Compile the operations of a block whose inputs are already in `scope`."""
        inputs = tuple(self._define(scope, v.name, read_type(v.type, v.name))[0] for v in proto.inputs)
        steps: list[Step] = []
        for operation in proto.operations:
            step = self._operation(operation, scope)
            if step is not None:
                steps.append(step)
        outputs = tuple(self._resolve(scope, name, "the outputs of a block")[0] for name in proto.outputs)
        own = {slot for slot, _ in scope.names.values()} - self.constants.keys()
        _free_after_last_use(steps, own - set(outputs))
        return Block(inputs, steps, outputs)

    def _operation(self, proto: Any, scope: _Scope) -> Step | None:
        label = proto.attributes["name"].immediateValue.tensor.strings.values if "name" in proto.attributes else ()
        name = label[0] if label else (proto.outputs[0].name if proto.outputs else proto.type)
        what = f"operation {name} ({proto.type})"
        if proto.type == "const":
            self._constant(proto, scope, what)
            return None
        folded = proto.type.startswith("constexpr_")
        bindings: dict[str, list[tuple[int, Type]]] = {}
        references: dict[str, tuple[str, ...]] = {}
        if folded:
            for key, value in proto.attributes.items():
                if key != "name":
                    bindings[key] = [self._literal(value, f"{name}.{key}")]
        for key, argument in proto.inputs.items():
            bindings[key] = []
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name":
                    bindings[key].append(self._resolve(scope, binding.name, f"{what}, input {key},"))
                else:
                    bindings[key].append(self._literal(binding.value, f"{name}.{key}"))
            references[key] = tuple(b.name for b in argument.arguments if b.WhichOneof("binding") == "name")
        blocks = tuple(self._block(b, _Scope(parent=scope)) for b in proto.blocks)
        types = tuple(read_type(o.type, f"{what}, output {o.name}") for o in proto.outputs)
        info = OperationInfo(
            name, proto.type, references, tuple(zip((o.name for o in proto.outputs), types, strict=True)), _notes(proto)
        )
        if _shape_is_doubtful(proto.type, bindings, types):
            types = tuple(replace(t, variadic=True) if isinstance(t, TensorType) else t for t in types)
        if proto.type in ("cond", "while_loop"):
            step = self._control(info, bindings, blocks, what)
        else:
            step = self._plain(info, bindings, types, what)
        step.outputs = tuple(self._define(scope, o.name, t)[0] for o, t in zip(proto.outputs, types, strict=True))
        if folded:
            self._fold(step, what)
            return None
        self.infos.append(info)
        return step

    def _constant(self, proto: Any, scope: _Scope, what: str) -> None:
        if len(proto.outputs) != 1 or "val" not in proto.attributes:
            raise DamagedError(f"{what}: a const has one output and a value")
        declared = read_type(proto.outputs[0].type, what)
        type, read = constant(proto.attributes["val"], proto.outputs[0].name, self.package)
        if type != declared:
            raise DamagedError(f"{what}: declared {declared}, but its value is {type}")
        slot, _ = self._define(scope, proto.outputs[0].name, type)
        self.constants[slot] = read

    def _literal(self, value: Any, name: str) -> tuple[int, Type]:
        type, read = constant(value, name, self.package)
        slot = self.slots
        self.slots += 1
        self.constants[slot] = read
        return slot, type

    def _find(self, info: OperationInfo, what: str) -> Operation:
        operation = find(info.type, self.opset)
        if operation is None:
            if info.type in OPERATIONS:
                raise DamagedError(f"{what} is not part of this program's opset {self.opset_name}")
            raise UnsupportedError(f"{what}: the interpreter does not know this operation")
        return operation

    def _plain(
        self, info: OperationInfo, bindings: dict[str, list[tuple[int, Type]]], types: tuple[Type, ...], what: str
    ) -> Step:
        operation = self._find(info, what)
        unknown = bindings.keys() - set(operation.parameters)
        if unknown and not operation.takes_any:
            raise DamagedError(f"{what}: has no input called {sorted(unknown)[0]}")
        missing = operation.required - bindings.keys()
        if missing:
            raise DamagedError(f"{what}: its input {sorted(missing)[0]} is missing")
        order = {name: i for i, name in enumerate(operation.parameters)}
        bindings = dict(sorted(bindings.items(), key=lambda item: order.get(item[0], len(order))))
        several = {k for k, v in bindings.items() if len(v) != 1} | (bindings.keys() & operation.variadic)
        narrow = operation.exact and all(
            t.dtype == "fp16" for v in bindings.values() for _, t in v if isinstance(t, TensorType) and t.is_float
        )
        run = operation.run
        if operation.pointwise and self._is_table(bindings, types):
            run, narrow = tabulated(run), True
        return Step(
            info,
            run,
            operation.run,
            tuple((k, v[0][0]) for k, v in bindings.items() if k not in several),
            tuple((k, tuple(slot for slot, _ in v)) for k, v in bindings.items() if k in several),
            {"out": types} if operation.takes_out else {},
            (),
            tuple(finisher(t, exact=narrow) for t in types),
            tuple(finisher(t, exact=True) for t in types),
        )

    def _is_table(self, bindings: dict[str, list[tuple[int, Type]]], types: tuple[Type, ...]) -> bool:
        """Whether an operation maps one fp16 value and constants to an fp16 value."""
        values = [slots[0] for name, slots in bindings.items() if name == "x"]
        others = [slot for name, slots in bindings.items() if name != "x" for slot, _ in slots]
        ends = [type for _, type in values] + list(types)
        return (
            len(ends) == 2
            and all(isinstance(t, TensorType) and t.dtype == "fp16" for t in ends)
            and all(slot in self.constants for slot in others)
        )

    def _control(
        self, info: OperationInfo, bindings: dict[str, list[tuple[int, Type]]], blocks: tuple[Block, ...], what: str
    ) -> Step:
        if len(blocks) != 2:
            raise DamagedError(f"{what}: has {len(blocks)} blocks, needs 2")
        variables = bindings.get("loop_vars", [])
        wrong = (
            len(bindings.get("pred", ())) != 1 or any(len(b.outputs) != len(info.outputs) for b in blocks)
            if info.type == "cond"
            else len(blocks[0].outputs) != 1
            or len(blocks[1].outputs) != len(variables)
            or any(len(b.inputs) != len(variables) for b in blocks)
            or len(info.outputs) != len(variables)
        )
        if wrong:
            raise DamagedError(f"{what}: its blocks do not fit its inputs and outputs")
        keep = tuple(finisher(t, exact=True) for _, t in info.outputs)
        return Step(
            info,
            None,
            None,
            tuple((k, v[0][0]) for k, v in bindings.items() if k == "pred"),
            tuple((k, tuple(s for s, _ in v)) for k, v in bindings.items() if k == "loop_vars"),
            {},
            (),
            keep,
            keep,
            blocks,
        )

    def _fold(self, step: Step, what: str) -> None:
        """Make the output of a constexpr a constant, decompressed when first needed."""
        sources = {slot for _, slot in step.arguments}
        if not sources <= self.constants.keys():
            raise DamagedError(f"{what}: its inputs must be constants")
        read = {k: self.constants[slot] for k, slot in step.arguments}

        def decompress(index: int) -> Any:
            assert step.run is not None
            try:
                value = step.run(**{k: r() for k, r in read.items()}, **step.static)
                return step.finish[index](value[index] if type(value) is tuple else value)
            except (ValueError, IndexError, TypeError) as error:
                raise DamagedError(f"{what}: its values do not fit together: {error}") from error

        for index, slot in enumerate(step.outputs):
            self.constants[slot] = lambda index=index: decompress(index)  # type: ignore[misc]


def _shape_is_doubtful(kind: str, bindings: dict[str, list[tuple[int, Type]]], types: tuple[Type, ...]) -> bool:
    """Whether the declared shapes of an operation's results must not be relied on.

    coremltools infers the shape of `select` from its branches alone (iOS15/control_flow.py), so that a mask chosen
    between two scalars is declared a scalar; so are the values made of it. A variadic type leaves shapes open.
    """
    given = {key: slots[0][1] for key, slots in bindings.items() if slots}
    if kind == "select" and isinstance(condition := given.get("cond"), TensorType):
        return any(isinstance(t, TensorType) and t.shape != condition.shape for t in types)
    return any(isinstance(t, TensorType) and t.variadic for slots in bindings.values() for _, t in slots)


def body_names(function: Any) -> list[str]:
    """Names of the outputs of a function message."""
    return list(function.block_specializations[function.opset].outputs)


def _notes(proto: Any) -> dict[str, Any]:
    """Attributes other than the name that are inline strings or numbers: where converters record sources."""
    notes = {}
    for key, value in proto.attributes.items():
        tensor = value.immediateValue.tensor
        stored = tensor.WhichOneof("value")
        if key != "name" and stored and stored != "bytes" and len(getattr(tensor, stored).values) == 1:
            notes[key] = getattr(tensor, stored).values[0]
    return notes


def _used(step: Step) -> set[int]:
    slots = {s for _, s in step.arguments} | {s for _, many in step.lists for s in many}
    for block in step.blocks:
        slots |= set(block.outputs)
        for inner in block.steps:
            slots |= _used(inner)
    return slots


def _free_after_last_use(steps: list[Step], candidates: set[int]) -> None:
    for step in reversed(steps):
        last = (_used(step) | set(step.outputs)) & candidates
        step.frees = tuple(sorted(last))
        candidates -= last


def state_types(plan: Plan) -> dict[str, TensorType]:
    """The states that a function takes, by name."""
    return {name: type.wrapped for name, (_, type) in plan.inputs.items() if isinstance(type, StateType)}
