"""Complex numbers as two real ones: no format computes with them, and rotary positions are at times written so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from .graph import Builder, same_shape

aten = torch.ops.aten

_Pair = tuple[Node, Node]

# What is done to both parts alike.
_BY_PART = {
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.slice.Tensor,
    aten.select.int,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.expand.default,
    aten.transpose.int,
    aten.permute.default,
    aten.repeat.default,
    aten.index_select.default,
    aten.neg.default,
}


def pairs_of_reals(program: ExportedProgram) -> None:
    """Write products, sums and changes of shape of complex numbers by their real and imaginary parts.

    Llama 4 and DeepSeek V2 turn queries and keys by a product with `polar(1, angle)`. A program with any other
    operation on complex numbers (a spectrum) is left as it is.
    """
    nodes = [node for node in program.graph.nodes if _touches_complex(node)]
    if not nodes or not all(_can_be_written(node) for node in nodes):
        return
    parts: dict[Node, _Pair] = {}
    for node in nodes:
        build = Builder(node)
        if _is_complex(node):
            parts[node] = _by_parts(node, build, parts)
        else:
            node.replace_all_uses_with(_real(node, build, parts[node.args[0]]))
    for node in reversed(nodes):
        program.graph.erase_node(node)


def _is_complex(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, torch.Tensor) and value.is_complex()


def _touches_complex(node: Node) -> bool:
    return _is_complex(node) or any(map(_is_complex, node.all_input_nodes))


def _can_be_written(node: Node) -> bool:
    if node.op != "call_function" or node.kwargs:
        return False
    if not _is_complex(node):
        return node.target in (aten.view_as_real.default, aten.real.default, aten.imag.default)
    if node.target in (aten.add.Tensor, aten.sub.Tensor):  # a real side must not widen the other
        operands = node.args[:2]
        shapes = [each.meta["val"].shape for each in operands if _is_complex(each)]
        return len(shapes) == 2 or same_shape(shapes[0], node.meta["val"].shape)
    return node.target in {*_BY_PART, *_MADE, aten.mul.Tensor}


def _from_angle(build: Builder, size: Node, angle: Node) -> _Pair:
    real, imaginary = (build(turn, angle) for turn in (aten.cos.default, aten.sin.default))
    return build(aten.mul.Tensor, size, real), build(aten.mul.Tensor, size, imaginary)


def _from_last_axis(build: Builder, source: Node) -> _Pair:
    return build(aten.select.int, source, -1, 0), build(aten.select.int, source, -1, 1)


_MADE: dict[Any, Callable[..., _Pair]] = {
    aten.polar.default: _from_angle,
    aten.view_as_complex.default: _from_last_axis,
    aten.complex.default: lambda build, real, imaginary: (real, imaginary),
}


def _by_parts(node: Node, build: Builder, parts: dict[Node, _Pair]) -> _Pair:
    if node.target in _MADE:
        return _MADE[node.target](build, *node.args)
    if node.target in _BY_PART:
        real, imaginary = (build(node.target, part, *node.args[1:]) for part in parts[node.args[0]])
        return real, imaginary
    (a, b), (c, d) = (parts[each] if _is_complex(each) else (each, None) for each in node.args[:2])
    if node.target is not aten.mul.Tensor:
        return build(node.target, a, c), _joined(node, build, b, d)
    if b is None or d is None:
        factor, (real, imaginary) = (a, (c, d)) if b is None else (c, (a, b))
        return build(aten.mul.Tensor, real, factor), build(aten.mul.Tensor, imaginary, factor)

    def product(one: Node, other: Node) -> Node:
        return build(aten.mul.Tensor, one, other)

    real = build(aten.sub.Tensor, product(a, c), product(b, d))
    return real, build(aten.add.Tensor, product(a, d), product(b, c))


def _joined(node: Node, build: Builder, one: Node | None, other: Node | None) -> Node:
    """The imaginary part of a sum or a difference, of which one side may be real."""
    if other is None:
        assert one is not None
        return one
    if one is None:
        return other if node.target is aten.add.Tensor else build(aten.neg.default, other)
    return build(node.target, one, other)


def _real(node: Node, build: Builder, pair: _Pair) -> Node:
    if node.target is aten.view_as_real.default:
        return build(aten.stack.default, list(pair), -1)
    return pair[node.target is aten.imag.default]
