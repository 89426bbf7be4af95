"""Grouped queries: attention whose keys and values were repeated for several query heads each."""

from __future__ import annotations

import torch
from torch.fx import Node

aten = torch.ops.aten


def before_repeat(node: Node) -> Node | None:
    """The (batch, fewer heads, length, depth) that `node` (batch, heads, length, depth) repeats head by head.

    None when it is no such repetition. It is written as in Transformers: an axis put in behind the heads, expanded, and
    joined with them.
    """
    if node.target is not aten.reshape.default or not isinstance(node.args[0], Node):
        return None
    expanded = node.args[0]
    if expanded.target is not aten.expand.default or not isinstance(expanded.args[0], Node):
        return None
    apart = expanded.args[0]
    if apart.target is not aten.unsqueeze.default or apart.args[1] not in (2, -3):
        return None
    source = apart.args[0]
    shape, whole, parts = (each.meta["val"].shape for each in (source, node, expanded))
    if len(shape) != 4 or len(whole) != 4 or len(parts) != 5:
        return None
    heads, fewer, times = whole[1], shape[1], parts[2]
    numbers = all(isinstance(size, int) for size in (heads, fewer, times))
    return source if numbers and heads == fewer * times and str(whole[3]) == str(shape[3]) else None
