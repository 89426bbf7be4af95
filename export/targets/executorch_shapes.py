"""Changes of shape on executorch's edge graph, written as XNNPACK has them: one reshape, or slices of known size."""

from __future__ import annotations

import operator
from typing import Any

import torch
from executorch.exir.dialects._ops import ops
from torch.fx import Node
from torch.fx.passes.infra.pass_base import PassResult

from ..graph import same_shape

edge = ops.edge

_EDGE_RESHAPES = (
    edge.aten.view_copy.default,
    edge.aten.squeeze_copy.dims,
    edge.aten.squeeze_copy.dim,
    edge.aten.unsqueeze_copy.default,
    edge.aten.expand_copy.default,
)


def _value(node: Any) -> torch.Tensor:
    return node.meta["val"]


def known_slices(module: torch.fx.GraphModule) -> PassResult:
    """Splits and selections of tensors of known size as slices, which are what XNNPACK has of them."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target in (edge.aten.split_with_sizes_copy.default, edge.aten.split_copy.Tensor):
            _split(node)
        elif node.target is edge.aten.unbind_copy.int:
            _unbind(node)
        elif node.target is edge.aten.select_copy.int:
            source, axis, place = node.args
            if _known(source):
                size = _value(source).shape[axis]
                _becomes(node, _edge_slice(node, source, axis, place % size, place % size + 1))
    graph.eliminate_dead_code()
    module.recompile()
    return PassResult(module, True)


def _known(node: Any) -> bool:
    value = _value(node)
    return value.dtype in (torch.float32, torch.float16) and all(isinstance(size, int) for size in value.shape)


def _split(node: Node) -> None:
    source, axis = node.args[0], node.args[2] if len(node.args) > 2 else 0
    if not _known(source) or any(user.target is not operator.getitem for user in node.users):
        return
    sizes = [part.shape[axis] for part in _value(node)]
    for user in list(node.users):
        start = sum(sizes[: user.args[1]])
        _becomes(user, _edge_slice(user, source, axis, start, start + sizes[user.args[1]]))


def _unbind(node: Node) -> None:
    source, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
    if not _known(source) or any(user.target is not operator.getitem for user in node.users):
        return
    for user in list(node.users):
        _becomes(user, _edge_slice(user, source, axis, user.args[1], user.args[1] + 1))


def _edge_slice(node: Node, source: Any, axis: Any, start: int, stop: int) -> Node:
    """The slice, without the axis when `node` has none."""
    rank = _value(source).dim()
    graph, value = node.graph, _value(source).narrow(axis, start, stop - start).contiguous()
    with graph.inserting_before(node):
        result = graph.call_function(edge.aten.slice_copy.Tensor, (source, axis % rank, start, stop))
        result.meta = {**node.meta, "val": value}
        if _value(node).dim() < rank:
            result = graph.call_function(edge.aten.view_copy.default, (result, list(_value(node).shape)))
            result.meta = dict(node.meta)
    return result


def _becomes(node: Node, other: Node) -> None:
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def plain_reshapes(module: torch.fx.GraphModule) -> PassResult:
    """Write every change of shape on the edge graph as one reshape to sizes of which at most one is `-1`.

    XNNPACK takes `view_copy` alone, without sizes that are nodes of the graph. Chains of them become one, and what
    changes nothing goes.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target not in _EDGE_RESHAPES or not isinstance(node.args[0], Node):
            continue
        shape, source = _value(node).shape, node.args[0]
        if node.target is edge.aten.expand_copy.default and not same_shape(shape, _value(source).shape):
            continue
        while source.target in _EDGE_RESHAPES and source.target is not edge.aten.expand_copy.default:
            source = source.args[0]
        if same_shape(shape, _value(source).shape):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif sum(not isinstance(size, int) for size in shape) <= 1:
            node.target = edge.aten.view_copy.default
            node.args = (source, [size if isinstance(size, int) else -1 for size in shape])
            node.kwargs = {}
    graph.eliminate_dead_code()
    module.recompile()
    return PassResult(module, True)
