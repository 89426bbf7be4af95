"""Attention in what XNNPACK has: products of 3-D tensors and a softmax."""

from __future__ import annotations

import math

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from ..graph import Builder, add_constant, arguments_of, value_of
from ..grouped import before_repeat
from ..masks import MASKED

aten = torch.ops.aten

# No kernel of XNNPACK's softmax takes more numbers of a row in one step.
_STEP = 64


def attention(program: ExportedProgram, node: Node, rounds: bool = False) -> Node | None:
    """Attention on 3-D tensors (batch * heads, length, depth): two `bmm` around a softmax.

    PyTorch's own decomposition keeps 4-D tensors, broadcasts with `expand`, scales twice and mends rows that are
    masked whole; XNNPACK takes none of it. Masks here are additive and finite (see `masks.py`).
    """
    given = arguments_of(node)
    query, key, value, mask = (given[name] for name in ("query", "key", "value", "attn_mask"))
    shapes = [value_of(argument).shape for argument in (query, key, value)]
    if (
        any(len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int) for shape in shapes)
        or shapes[0][1] != shapes[1][1]
        or given["is_causal"]
        or given["dropout_p"]
        or (mask is not None and not value_of(mask).dtype.is_floating_point)
    ):
        return None
    build = Builder(node)
    heads, depth = shapes[0][1], shapes[0][3]
    scale = given["scale"] if given["scale"] is not None else 1 / math.sqrt(depth)
    if str(shapes[0][0]) == "1" and isinstance(shapes[1][2], int):
        grouped = _grouped(build, query, key, value, mask, scale)
        if grouped is not None:
            return grouped
    query, key, value = (build(aten.flatten.using_ints, each, 0, 1) for each in (query, key, value))
    if rounds and mask is not None and not isinstance(shapes[1][2], int):  # as many keys each time: sums alike
        key, value, mask = _steady(program, build, key, value, mask)
    scores = build(aten.bmm.default, build(aten.mul.Tensor, query, scale), build(aten.permute.default, key, [0, 2, 1]))
    if mask is not None and (value_of(mask).dim() < 4 or str(value_of(mask).shape[0]) == "1" == str(shapes[0][0])):
        while value_of(mask).dim() > 3:
            mask = build(aten.squeeze.dim, mask, 0)
        scores = build(aten.add.Tensor, scores, mask)
    elif mask is not None:
        apart = build(aten.add.Tensor, build(aten.unflatten.int, scores, 0, [-1, heads]), mask)
        scores = build(aten.flatten.using_ints, apart, 0, 1)
    mixed = build(aten.bmm.default, build(aten.softmax.int, scores, -1), value)
    return build(aten.unflatten.int, mixed, 0, [-1, heads])


def _grouped(build: Builder, query: Node, key: Node, value: Node, mask: Node | None, scale: float) -> Node | None:
    """Attention of one row whose keys and values serve several query heads each, without repeating them.

    The queries of a group stand one below the other: (heads, length, depth) is (groups, times * length, depth). The
    number of keys is known, so that the scores can be told apart again for the mask.
    """
    keys, values = before_repeat(key), before_repeat(value)
    if keys is None or values is None or value_of(keys).shape[1] != value_of(values).shape[1]:
        return None
    heads, groups, count = value_of(query).shape[1], value_of(keys).shape[1], value_of(keys).shape[2]
    depths = [value_of(each).shape[3] for each in (query, values)]
    while mask is not None and value_of(mask).dim() > 3:
        mask = build(aten.squeeze.dim, mask, 0)
    query, keys, values = (build(aten.flatten.using_ints, each, 0, 1) for each in (query, keys, values))
    scaled = build(aten.reshape.default, build(aten.mul.Tensor, query, scale), [groups, -1, depths[0]])
    scores = build(aten.bmm.default, scaled, build(aten.permute.default, keys, [0, 2, 1]))
    scores = build(aten.reshape.default, scores, [heads, -1, count])
    if mask is not None:
        scores = build(aten.add.Tensor, scores, mask)
    shares = build(aten.reshape.default, build(aten.softmax.int, scores, -1), [groups, -1, count])
    mixed = build(aten.reshape.default, build(aten.bmm.default, shares, values), [heads, -1, depths[1]])
    return build(aten.unsqueeze.default, mixed, 0)


def _steady(program: ExportedProgram, build: Builder, key: Node, value: Node, mask: Node) -> tuple[Node, Node, Node]:
    """Keys, values and mask with masked keys behind them, enough for a whole step of XNNPACK's softmax.

    It adds up the last, incomplete step of a row in another order, so that padding changes sums by a last digit.
    Where layers round their inputs, that digit now and then decides between two integers.
    """
    shape = value_of(key).shape
    if not isinstance(shape[0], int) or any(str(size) != "1" for size in value_of(mask).shape[:-1]):
        return key, value, mask
    # Each attention has its own: a constant must not be in two delegates.
    nothing = add_constant(program, f"palmtop_no_keys_{key.name}", torch.zeros(shape[0], _STEP, shape[2]))
    while value_of(mask).dim() > 3:
        mask = build(aten.squeeze.dim, mask, 0)
    rank = value_of(mask).dim()
    # Lower than what masks hold: where every key is masked, those of the model still share the row.
    masked = add_constant(program, f"palmtop_masked_{key.name}", torch.full([1] * (rank - 1) + [_STEP], 2 * MASKED))
    key, value = (build(aten.cat.default, [each, nothing], 1) for each in (key, value))
    return key, value, build(aten.cat.default, [mask, masked], -1)
