"""Running a compiled plan: a frame of slots, steps in order, values freed after their last use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import DamagedError, PalmtopError, RequestError
from .plan import Block, Step

#: Called with (operation name, operation type, value) for each output of each operation, in order of execution.
Observer = Callable[[str, str, Any], None]


class ExecutionError(RequestError, RuntimeError):
    """An operation cannot be computed on the values it was given; names the operation.

    Also a RuntimeError, which is what Core ML's own `predict` raises.
    """


@dataclass
class Run:
    """One prediction: the slots, and what to do besides computing."""

    frame: list[Any]
    wide: bool  # leave values declared fp16 unrounded
    observer: Observer | None


def run_block(block: Block, run: Run) -> tuple[Any, ...]:
    """Execute the steps of a block whose inputs are in the frame; gives its outputs."""
    frame = run.frame
    for step in block.steps:
        arguments = {name: frame[slot] for name, slot in step.arguments}
        for name, slots in step.lists:
            arguments[name] = tuple(frame[slot] for slot in slots)
        try:
            compute = step.run_wide if run.wide else step.run
            if compute is not None:
                values = compute(**arguments, **step.static)
                if type(values) is not tuple:
                    values = (values,)
            else:
                values = _control(step, arguments, run)
            finish = step.finish_wide if run.wide else step.finish
            if len(step.outputs) != len(values or ()):
                raise ValueError(f"{len(values)} values for {len(step.outputs)} outputs")
            for slot, complete, value in zip(step.outputs, finish, values or (), strict=True):
                frame[slot] = complete(value)
        except PalmtopError:
            raise
        except MemoryError as error:
            raise ExecutionError(f"{_describe(step)}: not enough memory for its result ({error})") from error
        except Exception as error:
            raise ExecutionError(
                f"Unable to compute the prediction using ML Program: {_describe(step)} on "
                f"{_describe_values(arguments)}: {error or type(error).__name__}"
            ) from error
        if run.observer is not None:
            for (name, _), slot in zip(step.info.outputs, step.outputs, strict=True):
                run.observer(name, step.info.type, frame[slot])
        for slot in step.frees:
            frame[slot] = None
    return tuple(frame[slot] for slot in block.outputs)


def _control(step: Step, arguments: dict[str, Any], run: Run) -> tuple[Any, ...]:
    if step.info.type == "cond":
        return run_block(step.blocks[0 if _truth(arguments["pred"]) else 1], run)
    test, body = step.blocks
    variables = arguments["loop_vars"]
    while True:
        for slot, value in zip(test.inputs, variables, strict=True):
            run.frame[slot] = value
        if not _truth(run_block(test, run)[0]):
            return variables
        for slot, value in zip(body.inputs, variables, strict=True):
            run.frame[slot] = value
        variables = run_block(body, run)


def _truth(value: Any) -> bool:
    if getattr(value, "size", 1) != 1:
        raise DamagedError(f"a condition must be one boolean, not a tensor of shape {value.shape}")
    return bool(value)


def _describe(step: Step) -> str:
    return f"operation {step.info.name} ({step.info.type})"


def _describe_values(arguments: dict[str, Any]) -> str:
    parts = []
    for name, value in arguments.items():
        shape = getattr(value, "shape", None)
        if shape:
            parts.append(f"{name} {value.dtype}{list(shape)}")
        elif isinstance(value, tuple):
            parts.append(f"{name} {len(value)} values")
        else:
            parts.append(f"{name}={value}")
    return ", ".join(parts) or "no inputs"
