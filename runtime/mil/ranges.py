"""Between which numbers the inputs of a program's layers lie, on example data: what static quantization needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RequestError
from .plan import OperationInfo
from .program import Program

#: Operation that multiplies a tensor by a weight -> its inputs that may be either.
_LAYERS = {"linear": ("x", "weight"), "conv": ("x", "weight"), "matmul": ("x", "y")}


def activation_ranges(
    package: str | Path | Program,
    feeds: Iterable[Mapping[str, np.ndarray]],
    progress: Callable[[], None] | None = None,
) -> dict[str, tuple[float, float]]:
    """Run a program on inputs and gather the least and greatest number that meets each constant weight.

    Args:
        package: an `.mlpackage`, or a program already loaded.
        feeds: inputs by name; best without padding, whose numbers would count like any other.

    Returns:
        name of the weight in the program -> (least, greatest) of all inputs of the layers that read it. Weights of
        layers that never ran (the other branch of a `cond`) are left out.

    Raises:
        RequestError: there is no input, or one is or gives NaN or infinity.
    """
    program = package if isinstance(package, Program) else Program.load(package)
    readers = _readers(program)
    found: dict[str, tuple[float, float]] = {}

    def see(name: str, _kind: str, value: Any) -> None:
        for weight in readers.get(name, ()):
            array = np.asarray(value)
            if not array.size:
                continue
            low, high = float(array.min()), float(array.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                raise RequestError(f"Calibration: an input makes {name} NaN or infinite. Look at the data.")
            before = found.get(weight, (low, high))
            found[weight] = min(low, before[0]), max(high, before[1])

    count = 0
    for feed in feeds:
        for name, value in feed.items():
            array = np.asarray(value)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise RequestError(f"Calibration: input {name} has NaN or infinity. Look at the data.")
            see(name, "input", value)
        state = program.new_state() if program.state_features else None
        program.predict(feed, state, observer=see)
        count += 1
        if progress is not None:
            progress()
    if not count:
        raise RequestError("Calibration needs at least one input; the data has none.")
    return found


def _readers(program: Program) -> dict[str, list[str]]:
    """Name of a value that layers read -> names of the constants that it is multiplied by."""
    computed = {name for operation in program.operations for name, _ in operation.outputs}
    computed |= program.input_features.keys() | program.state_features.keys()
    readers: dict[str, list[str]] = {}
    for operation in program.operations:
        for source, weight in _pairs(operation):
            if source in computed and weight not in computed:
                readers.setdefault(source, []).append(weight)
    return readers


def _pairs(operation: OperationInfo) -> list[tuple[str, str]]:
    first, second = (operation.inputs.get(key, ()) for key in _LAYERS.get(operation.type, ("", "")))
    if len(first) != 1 or len(second) != 1:
        return []
    pairs = [(first[0], second[0])]
    return [*pairs, (second[0], first[0])] if operation.type == "matmul" else pairs
