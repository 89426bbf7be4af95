"""Rewrites that let XNNPACK take the whole of a transformer in one piece, each exact to the noise of fp32.

A `.pte` runs what XNNPACK accepts inside delegates and the rest, operation by operation, on ExecuTorch's own kernels.
XNNPACK has no layer norm and no attention, and takes a reshape only when at most one size of the result is unknown;
left alone, those break a model into several delegates a layer. Here they are written in what XNNPACK has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from executorch.exir.dialects._ops import ops
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node
from torch.fx.passes.infra.pass_base import PassResult

from ..normalize import _same_shape as same_shape
from ..normalize import insert

aten = torch.ops.aten
edge = ops.edge

_EDGE_RESHAPES = (
    edge.aten.view_copy.default,
    edge.aten.squeeze_copy.dims,
    edge.aten.squeeze_copy.dim,
    edge.aten.unsqueeze_copy.default,
    edge.aten.expand_copy.default,
)


def rewrite(program: ExportedProgram) -> None:
    """Apply every rewrite to a program, in place."""
    for node in list(program.graph.nodes):
        change = _REWRITES.get(node.target)
        if change is not None:
            result = change(program, node)
            if result is not None:
                node.replace_all_uses_with(result)
                program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph.lint()
    program.graph_module.recompile()


class _Builder:
    """Writes calls before one node: `build(aten.add.Tensor, x, y)`."""

    def __init__(self, node: Node):
        self._node = node

    def __call__(self, target: Callable[..., Any], *args: Any) -> Node:
        return insert(self._node.graph, self._node, target, args)


def _attention(program: ExportedProgram, node: Node) -> Node | None:
    """Attention on 3-D tensors (heads, length, depth), for a batch of one: two `bmm` around a softmax.

    PyTorch's own decomposition keeps 4-D tensors, broadcasts with `expand`, scales twice and mends rows that are
    masked whole; XNNPACK takes none of the first two. Masks here are additive and finite (see `normalize.py`).
    """
    query, key, value = node.args[:3]
    shapes = [argument.meta["val"].shape for argument in (query, key, value)]  # type: ignore[union-attr]
    mask = node.kwargs.get("attn_mask")
    if (
        any(len(shape) != 4 or str(shape[0]) != "1" for shape in shapes)
        or any(not isinstance(shape[axis], int) for shape in shapes for axis in (1, 3))
        or shapes[0][1] != shapes[1][1]
        or node.kwargs.get("is_causal")
        or node.kwargs.get("dropout_p")
        or (isinstance(mask, Node) and (mask.meta["val"].dtype == torch.bool or str(mask.meta["val"].shape[0]) != "1"))
    ):
        return None
    build = _Builder(node)
    depth = shapes[0][3]
    scale = node.kwargs.get("scale") or 1 / math.sqrt(depth)
    query = build(aten.squeeze.dim, build(aten.mul.Tensor, query, scale), 0)
    key = build(aten.permute.default, build(aten.squeeze.dim, key, 0), [0, 2, 1])
    value = build(aten.squeeze.dim, value, 0)
    scores = build(aten.bmm.default, query, key)
    if isinstance(mask, Node):
        while mask.meta["val"].dim() > 3:
            mask = build(aten.squeeze.dim, mask, 0)
        scores = build(aten.add.Tensor, scores, mask)
    mixed = build(aten.bmm.default, build(aten.softmax.int, scores, -1), value)
    return build(aten.unsqueeze.default, mixed, 0)


def _layer_norm(program: ExportedProgram, node: Node) -> Node | None:
    """Layer norm over the last axis: XNNPACK has no sum along an axis, but a product with a vector of 1/n is a mean."""
    source, shape, weight, bias, epsilon = (*node.args, None, None, 1e-5)[:5] if len(node.args) < 5 else node.args[:5]
    if len(shape) != 1 or source.meta["val"].dtype != torch.float32:  # type: ignore[union-attr, arg-type]
        return None
    build = _Builder(node)
    size = shape[0]  # type: ignore[index]
    average = add_constant(program, f"palmtop_average_{size}", torch.full((1, size), 1.0 / size))
    centered = build(aten.sub.Tensor, source, build(aten.linear.default, source, average))
    variance = build(aten.linear.default, build(aten.mul.Tensor, centered, centered), average)
    result = build(aten.mul.Tensor, centered, build(aten.rsqrt.default, build(aten.add.Tensor, variance, epsilon)))
    if weight is not None:
        result = build(aten.mul.Tensor, result, weight)
    if bias is not None:
        result = build(aten.add.Tensor, result, bias)
    return result


_REWRITES: dict[Any, Callable[[ExportedProgram, Node], Node | None]] = {
    aten.scaled_dot_product_attention.default: _attention,
    aten.layer_norm.default: _layer_norm,
}


def plain_reshapes(module: torch.fx.GraphModule) -> PassResult:
    """Write every change of shape on the edge graph as one reshape from sizes of which at most one is `-1`.

    XNNPACK takes `view_copy` alone, without sizes that are nodes of the graph. Chains of them become one, and what
    changes nothing goes.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target not in _EDGE_RESHAPES or not isinstance(node.args[0], Node):
            continue
        shape, source = node.meta["val"].shape, node.args[0]
        if node.target is edge.aten.expand_copy.default and not same_shape(shape, source.meta["val"].shape):
            continue
        while source.target is edge.aten.view_copy.default:
            source = source.args[0]  # type: ignore[assignment]
        if same_shape(shape, source.meta["val"].shape):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif sum(not isinstance(size, int) for size in shape) <= 1:
            node.target = edge.aten.view_copy.default
            node.args = (source, [size if isinstance(size, int) else -1 for size in shape])
            node.kwargs = {}
    graph.eliminate_dead_code()
    module.recompile()
    return PassResult(module, True)


def add_constant(program: ExportedProgram, name: str, value: torch.Tensor) -> Node:
    """The placeholder of a constant of that name, added to the program when it has none."""
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        if node.target == f"b_{name}":
            return node
    with program.graph.inserting_before(placeholders[0]):
        node = program.graph.placeholder(f"b_{name}")
    mode = next(other.meta["val"].fake_mode for other in placeholders if hasattr(other.meta.get("val"), "fake_mode"))
    node.meta["val"] = mode.from_tensor(value, static_shapes=True)
    specs = program.graph_signature.input_specs
    specs.insert(0, InputSpec(InputKind.BUFFER, TensorArgument(node.name), name, True))
    program.state_dict[name] = value
    return node
