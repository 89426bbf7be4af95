"""Reading torch.export's complaints about sizes: which axis, and which range of sizes the model allows.

When code in a model behaves differently for some size in the range that was asked for, torch.export refuses the range
and says so in English, with the condition it met as an expression of that size.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping
from types import CodeType

_VIOLATED = re.compile(r"Constraints violated \(([^)]*)\)")
_CONDITION = re.compile(
    r"Not all values of (\w+) = (\S.*?) in the specified range .*? satisfy the generated guard (.+?)\.?(?:\n|$)"
)
# A guard is arithmetic and comparisons over integers; anything else in it is not evaluated.
_ALLOWED = (
    ast.Expression, ast.Compare, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Constant, ast.operator, ast.unaryop, ast.cmpop,
    ast.boolop,
)  # fmt: skip
# Sizes tried to either side of the traced one: sounds have hundreds of thousands of samples.
_MOST_TRIED = 1_000_000


def violated(message: str, axes: Collection[str] = ()) -> set[str]:
    """The axes whose ranges torch.export refused; all of `axes` where it fails at saying which (torch 2.13 does where
    a size is the remainder of a negative one, `-length % 8`).
    """
    match = _VIOLATED.search(message)
    if match is None and "Cannot create Dim with inconsistent" in message:
        return set(axes)
    return {name.strip() for name in match.group(1).split(",")} if match else set()


def allowed_ranges(message: str, sizes: Mapping[str, tuple[int, int, int]]) -> dict[str, tuple[int, int]]:
    """For each refused axis whose condition can be read: the widest range around the traced size that meets it.

    Args:
        sizes: axis -> (least, traced, greatest) size.
    """
    ranges: dict[str, tuple[int, int]] = {}
    for name, source, guard in _CONDITION.findall(message):
        if name not in sizes:
            continue
        least, traced, greatest = sizes[name]
        condition = _compiled(guard.replace(source, "size"))
        if condition is None or not _holds(condition, traced):
            continue
        low, high = traced, traced
        while low > least and traced - low < _MOST_TRIED and _holds(condition, low - 1):
            low -= 1
        while high < greatest and high - traced < _MOST_TRIED and _holds(condition, high + 1):
            high += 1
        low = least if traced - low >= _MOST_TRIED else low
        high = greatest if high - traced >= _MOST_TRIED else high
        before = ranges.get(name, (least, greatest))
        ranges[name] = (max(low, before[0]), min(high, before[1]))
    return {name: found for name, found in ranges.items() if found != (sizes[name][0], sizes[name][2])}


def _compiled(guard: str) -> CodeType | None:
    try:
        tree = ast.parse(guard.strip(), mode="eval")
    except SyntaxError:
        return None
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    simple = all(isinstance(node, (*_ALLOWED, ast.Name, ast.Load)) for node in ast.walk(tree))
    return compile(tree, "<guard>", "eval") if simple and names == {"size"} else None


def _holds(condition: CodeType, size: int) -> bool:
    try:
        return bool(eval(condition, {"__builtins__": {}}, {"size": size}))
    except ArithmeticError:
        return False
