"""Where an fp16 ML Program overflows or drifts: its declared semantics against the same program without rounding.

Both runs advance together, one operation at a time, so that neither's values are kept: only numbers about them are.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DamagedError
from ..parity import Bound, Comparison, Measure, Noise, bound_for
from .program import Program
from .types import TensorType

# Operations that only pass a value on: keeping the module that a cast is counted to would not help.
_HAND_ON = {"cast"}

#: The largest number that fp16 holds.
FP16_LARGEST = 65504.0


@dataclass(frozen=True)
class OperationError:
    """One operation: its MIL name and type, the PyTorch module it came from (None: not recorded; "": the model itself),
    how far its value is from the one computed without rounding, and the largest magnitude of the latter.

    `half`: the program declares the value fp16.
    """

    name: str
    type: str
    module: str | None
    measure: Measure
    peak: float
    half: bool

    @property
    def overflows(self) -> bool:
        """Not finite where the run without rounding is."""
        return self.measure.nonfinite > 0

    @property
    def exceeds(self) -> bool:
        """Farther from the run without rounding than its bound."""
        return self.measure.cases > 0 and not self.measure.passed


@dataclass(frozen=True)
class Divergence:
    """Every operation with a floating-point value, in order of execution; and the one to blame, if any.

    `first` is None when the outputs stay within the bound. Otherwise it is the first operation that overflows, or else
    the first that drifts while nothing it was computed from does, and from which drift leads on to an output.
    `overflowing`: every PyTorch module that makes or reads a value beyond fp16's range, with its largest magnitude;
    judged in the run without rounding, so that what an earlier infinity does downstream does not count.
    """

    operations: tuple[OperationError, ...]
    first: OperationError | None
    overflowing: dict[str, float]


def divergence(
    program: Program,
    feeds: Mapping[str, Any],
    modules: Mapping[str, str] | None = None,
    bound: Bound | None = None,
) -> Divergence:
    """Run `program` on `feeds` as declared and without rounding, and compare operation by operation.

    Args:
        modules: value name -> PyTorch module (`palmtop.runtime.backends.coreml.module_of_operations`).
        bound: from which error on a value counts as diverging; default: what parity allows an fp16 output.
    """
    modules = modules or {}
    bound = bound or bound_for("fp16", Noise(0.0, 0.0))
    half = {
        name
        for operation in program.operations
        for name, type in operation.outputs
        if isinstance(type, TensorType) and type.dtype == "fp16"
    }
    found: list[OperationError] = []

    def compare(name: str, kind: str, rounded: Any, exact: Any) -> None:
        if not isinstance(exact, np.ndarray) or exact.dtype.kind != "f":
            return
        comparison = Comparison(name)
        comparison.add("", exact.shape, exact, rounded)
        finite = exact[np.isfinite(exact)]
        peak = float(np.max(np.abs(finite))) if finite.size else 0.0
        found.append(OperationError(name, kind, modules.get(name), comparison.measure(bound), peak, name in half))

    in_lockstep(program, feeds, compare)
    return Divergence(tuple(found), _to_blame(program, found), _overflowing(program, found, modules))


def in_lockstep(program: Program, feeds: Mapping[str, Any], compare: Callable[[str, str, Any, Any], None]) -> None:
    """Call `compare(name, type, rounded, exact)` after each operation, with its value as declared and without rounding.

    Ends early when rounding sends the two runs through different branches: from there on nothing corresponds.
    """
    with _exact_values(program, feeds) as following:

        def observe(name: str, kind: str, value: Any) -> None:
            other = next(following, None)
            if other is None or other[0] != name or np.shape(other[1]) != np.shape(value):
                raise _Apart
            compare(name, kind, value, other[1])

        with contextlib.suppress(_Apart):
            program.predict(feeds, _state(program), observe, precision="declared")


class _Apart(DamagedError):
    """Rounding decided a condition otherwise. (A PalmtopError, which the interpreter passes on as it is.)"""


@contextlib.contextmanager
def _exact_values(program: Program, feeds: Mapping[str, Any]) -> Iterator[Iterator[tuple[str, Any]]]:
    """Names and values of the run without rounding, computed in a thread that is one operation ahead."""
    values: queue.Queue[Any] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def run() -> None:
        def observe(name: str, _kind: str, value: Any) -> None:
            if stop.is_set():
                raise _Apart
            values.put((name, value))

        last: BaseException | None = None
        try:
            program.predict(feeds, _state(program), observe, precision="fp32")
        except BaseException as error:  # handed to the reader, who raises it
            last = error
        values.put(last)

    def read() -> Iterator[tuple[str, Any]]:
        while isinstance(value := values.get(), tuple):
            yield value
        if value is not None:
            raise value

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield read()
    finally:
        stop.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                values.get(timeout=0.05)
        thread.join()


def _state(program: Program) -> Any:
    return program.new_state() if program.state_features else None


def _overflowing(program: Program, found: list[OperationError], modules: Mapping[str, str]) -> dict[str, float]:
    peaks = {o.name: o.peak for o in found if o.half and o.peak > FP16_LARGEST}
    overflowing: dict[str, float] = {}
    for information in program.operations:
        touched = [name for name, _ in information.outputs]
        module = next((modules[name] for name in touched if name in modules), None)
        touched += [name for names in information.inputs.values() for name in names]
        peak = max((peaks[name] for name in touched if name in peaks), default=0.0)
        if peak and module is not None and information.type not in _HAND_ON:
            overflowing[module] = max(overflowing.get(module, 0.0), peak)
    return overflowing


def _to_blame(program: Program, found: list[OperationError]) -> OperationError | None:
    """When an output diverges: the first overflow, or else the first source of drift whose reach is that output."""
    exceeding = {operation.name for operation in found if operation.exceeds}
    sources: dict[str, set[str]] = {}
    for information in program.operations:
        read = {name for names in information.inputs.values() for name in names}
        for name, _ in information.outputs:
            sources.setdefault(name, set()).update(read)
    reached: set[str] = set()
    waiting = [name for name in program.output_features if name in exceeding]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(sources.get(name, set()) & exceeding)
    if not reached:
        return None
    overflow = next((operation for operation in found if operation.overflows), None)
    chain = [operation for operation in found if operation.name in reached]
    return overflow or next((o for o in chain if not sources.get(o.name, set()) & exceeding), None)
