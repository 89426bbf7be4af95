"""Graphs with fewer axes: Core ML's tensors have at most five, XNNPACK's maxima want four.

Attention in windows is written with six: (batch, tokens, windows, 3, heads, depth), of which one is picked apart or
reduced at once. Neighbours of that one are merged first, and told apart again after.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from .graph import insert

aten = torch.ops.aten

_MOST_AXES = 5
# A maximum over so few entries is written as maxima of two.
_FEW = 8


def fewer_axes(program: ExportedProgram) -> None:
    """Rewrite maxima over few entries, and what is picked from tensors of more than five axes, in place."""
    for node in list(program.graph.nodes):
        if node.target is aten.max.dim and all(_place(user) == 0 for user in node.users if user.users):
            _small_maximum(node)
        elif node.target is aten.unbind.int:
            _unbound(node)


def _small_maximum(node: Node) -> None:
    """The values of `max(x, axis)`, whose positions nobody reads."""
    source, axis, keep = (*node.args, False)[:3]
    shape = source.meta["val"].shape
    axis %= len(shape)
    count = shape[axis]
    if not isinstance(count, int) or count > _FEW:
        return
    apart = _apart(source, axis, node)
    given, at = (source, axis) if apart is None else (apart, 2)
    found = _build(node, aten.select.int, given, at, 0)
    for index in range(1, count):
        found = _build(node, aten.maximum.default, found, _build(node, aten.select.int, given, at, index))
    if apart is not None:
        found = _build(node, aten.reshape.default, found, _sizes(source, axis))
    if keep:
        found = _build(node, aten.unsqueeze.default, found, axis)
    for user in list(node.users):
        user.replace_all_uses_with(found)


def _unbound(node: Node) -> None:
    """The parts of `unbind(permute(reshape(x)))` of more than five axes, each picked before it is permuted."""
    permuted, axis = (*node.args, 0)[:2]
    if permuted.target is not aten.permute.default:
        return
    order = [place % len(permuted.args[1]) for place in permuted.args[1]]
    source, axis = permuted.args[0], axis % len(order)
    picked = order[axis]
    apart = _apart(source, picked, node)
    if apart is None:
        return
    left = [place - (place > picked) for place in order if place != picked]
    for user in list(node.users):
        part = _build(node, aten.select.int, apart, 2, _place(user))
        part = _build(node, aten.reshape.default, part, _sizes(source, picked))
        user.replace_all_uses_with(_build(node, aten.permute.default, part, left))


def _apart(source: Node, axis: int, before: Node) -> Node | None:
    """What a tensor of more than five axes was reshaped from, as (first, those before the axis, it, those after)."""
    shape = source.meta["val"].shape
    if source.target is not aten.reshape.default or len(shape) <= _MOST_AXES or axis == 0:
        return None
    rest = shape[1:]
    if not all(isinstance(size, int) for size in rest):
        return None
    sizes = [source.args[1][0], math.prod(shape[1:axis]), shape[axis], math.prod(shape[axis + 1 :])]
    return _build(before, aten.reshape.default, source.args[0], sizes)


def _sizes(source: Node, without: int) -> list[Any]:
    shape = list(source.meta["val"].shape)
    return [source.args[1][0], *shape[1:without], *shape[without + 1 :]]


def _place(user: Node) -> Any:
    return user.args[1] if user.target is operator.getitem else None


def _build(before: Node, target: Any, *args: Any) -> Node:
    return insert(before.graph, before, target, args)
