"""Operations that compute nothing, taken out: dropout in eval mode, assertions, aliases, copies, casts to the same."""

from __future__ import annotations

import operator

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from .graph import replace, same_shape

aten = torch.ops.aten

_ALWAYS_IDENTITY = {
    aten.alias.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh_copy.default,
    aten.contiguous.default,
    aten.clone.default,
}
_ASSERTIONS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}
_CASTS = {
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten._to_copy.default,
    aten.type_as.default,
}


def drop_identities(program: ExportedProgram) -> None:
    """Remove what computes nothing. `view` becomes `reshape`, which does not mind that a copy before it is gone."""
    graph = program.graph
    mutated = set(program.graph_signature.buffers_to_mutate) | set(program.graph_signature.user_inputs_to_mutate)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
        elif node.target is aten.broadcast_tensors.default:
            for user in list(node.users):  # losses that nobody reads leave these behind
                given = node.args[0][user.args[1]]
                if same_shape(given.meta["val"].shape, user.meta["val"].shape):
                    replace(user, given)
        elif node.target is aten.view.default or node.target is aten._unsafe_view.default:
            node.target = aten.reshape.default
        elif is_identity(node) and node.name not in mutated:
            replace(node, node.args[0])
        elif node.target in _CASTS and node.target is not aten.to.dtype:
            node.target, node.args, node.kwargs = aten.to.dtype, (node.args[0], node.meta["val"].dtype), {}


def plain_softmaxes(program: ExportedProgram) -> None:
    """A softmax of differences from the greatest number is one of the numbers: it takes the difference itself.

    In every format that is one operation for three, and in ExecuTorch no way out of the delegate (GPT-OSS).
    """
    for node in program.graph.nodes:
        given = node.args[0] if node.target in (aten.softmax.int, aten._softmax.default) else None
        if isinstance(given, Node) and given.target is aten.sub.Tensor and not given.kwargs:
            source, greatest = given.args
            if isinstance(source, Node) and _is_greatest(greatest, source, node.args[1]):
                node.replace_input_with(given, source)


def _is_greatest(node: object, source: Node, axis: int) -> bool:
    """Whether a node is the greatest along an axis, which is kept, of what `source` gives."""
    if isinstance(node, Node) and node.target is operator.getitem and node.args[1] == 0:
        node = node.args[0]
    if not isinstance(node, Node) or node.target not in (aten.max.dim, aten.amax.default) or node.args[0] is not source:
        return False
    axes = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
    rank = source.meta["val"].dim()
    return [each % rank for each in axes] == [axis % rank] and len(node.args) > 2 and bool(node.args[2])


def is_identity(node: Node) -> bool:
    """Whether a call gives back its first argument, for every input."""
    if node.target in _ALWAYS_IDENTITY:
        return True
    if node.target in (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default):
        return len(node.args) < 3 or not node.args[2]
    if node.target in _CASTS:
        return node.args[0].meta["val"].dtype == node.meta["val"].dtype
    if node.target in (aten.expand.default, aten.reshape.default):
        return same_shape(node.args[0].meta["val"].shape, node.meta["val"].shape)
    if node.target is aten.add.Tensor and not isinstance(node.args[1], Node):
        return node.args[1] == 0 and isinstance(node.args[0], Node) and _same_dtype(node)
    return False


def _same_dtype(node: Node) -> bool:
    return node.args[0].meta["val"].dtype == node.meta["val"].dtype
