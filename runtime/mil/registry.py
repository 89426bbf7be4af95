"""The table of operations: which function executes a MIL operation of a given opset.

An operation is a plain function whose parameters carry the names of the MIL inputs; inputs that the program omits are
not passed, so the defaults in the signature are MIL's own. Tensors arrive as numpy arrays. A value declared fp16
arrives as a float32 array of fp16-representable numbers and results are rounded to their declared types by the
executor, so that operations are written once, in fp32. Integers and booleans arrive in their declared dtype, strings as
`str`, a tuple of tensors as `tuple`.

A function with a keyword-only parameter `out` is given the declared output types (a tuple of `types.TensorType`:
`.dtype` is a name such as "fp16", `.shape` a tuple with None where unknown).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

#: Opsets in the order Apple released them: name in a package -> rank. "CoreML5" is what shipped with iOS 15.
OPSETS = {"CoreML5": 15, "CoreML6": 16, "CoreML7": 17, "CoreML8": 18, "CoreML9": 26}
_RELEASES = {"ios15": 15, "ios16": 16, "ios17": 17, "ios18": 18, "ios26": 26}

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Operation:
    """One version of one operation."""

    name: str
    since: int
    run: Callable[..., Any]
    parameters: tuple[str, ...]
    required: frozenset[str]
    takes_out: bool
    takes_any: bool  # **kwargs: operations with a free set of inputs
    variadic: frozenset[str]  # inputs that take a tuple of values even when one is given
    pointwise: bool  # a costly function of each element of `x` alone
    exact: bool  # results are input values moved, chosen or negated: nothing to round when the inputs are fp16


#: name -> versions, newest first.
OPERATIONS: dict[str, list[Operation]] = {}


def op(
    name: str,
    since: str = "ios15",
    exact: bool = False,
    pointwise: bool = False,
    variadic: tuple[str, ...] = (),
) -> Callable[[F], F]:
    """Register the decorated function as operation `name`, from the opset of release `since` on.

    `exact` says that every float it returns is one of its inputs (moved, chosen, negated, or a whole number of at most
    2048), so that the executor may skip rounding to fp16 when all float inputs are declared fp16. `pointwise` says
    that each element of the result is a function of that element of `x` and of constants, worth a table in fp16.
    `variadic` names the inputs that are a tuple of values.
    """

    def register(run: F) -> F:
        signature = inspect.signature(run).parameters.values()
        named = [p for p in signature if p.kind is not p.VAR_KEYWORD and p.name != "out"]
        versions = OPERATIONS.setdefault(name, [])
        release = _RELEASES[since]
        if any(v.since == release for v in versions):
            raise ValueError(f"operation {name} is registered twice for {since}")
        versions.append(
            Operation(
                name,
                release,
                run,
                tuple(p.name for p in named),
                frozenset(p.name for p in named if p.default is p.empty),
                takes_out=any(p.name == "out" for p in signature),
                takes_any=any(p.kind is p.VAR_KEYWORD for p in signature),
                variadic=frozenset(variadic),
                pointwise=pointwise,
                exact=exact,
            )
        )
        versions.sort(key=lambda v: -v.since)
        return run

    return register


def find(name: str, opset: int) -> Operation | None:
    """The newest version of `name` that is not newer than release number `opset` (15, 16, 17, 18, 26), or None."""
    return next((v for v in OPERATIONS.get(name, ()) if v.since <= opset), None)
