"""Layers of 8 bits a row in ONNX, their inputs rounded as they run: `MatMulIntegerToFloat`.

Inputs are rounded row by row (token by token), each by its own largest value, so that no token's answer depends on its
neighbours or on padding; `DynamicQuantizeMatMul` takes one range for a whole batch. Three or more layers that read one
activation are one product: a call on few tokens is mostly the calling of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir
import torch
from onnxscript import opset18 as op
from torch.export import ExportedProgram
from torch.fx import Node

from ...quantize.program import add_buffer, insert
from ...quantize.sites import Site, bias_of, layer_input
from ...quantize.smooth import origin
from ...quantize.weights import QuantizedWeight
from .onnx_contrib import contrib, later

aten = torch.ops.aten
_CENTRE = 128  # zero of the unsigned 8-bit inputs
# Behind these no number is less than minus this, so that most integers can be for what is above: with the zero at
# `_LOW` the error of what GELU gives, squared, is a third. A row's step is never less than what reaches down to there.
_FLOORS = {aten.relu.default: 0.0, aten.gelu.default: 0.1701, aten.silu.default: 0.2785, aten.hardswish.default: 0.376}
_LOW = 32
# Layers that read one activation are one product from so many on. Each result is then copied out of it, which for two
# costs what one call less gains.
_MERGED = 3

_LIBRARY = torch.library.Library("palmtop_onnx", "FRAGMENT")
_LIBRARY.define("row_zeros(Tensor x, int zero) -> Tensor")
_LIBRARY.define("row_linear(Tensor x, Tensor weight, Tensor scales, Tensor zeros, int zero, float floor) -> Tensor")
_LIBRARY.define("columns(Tensor x, int start, int end) -> Tensor")


def _fake_row_zeros(x: torch.Tensor, zero: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], 1), dtype=torch.uint8)


def _fake_row_linear(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


def _fake_columns(x: torch.Tensor, start: int, end: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], end - start))


for _name, _fake in (("row_zeros", _fake_row_zeros), ("row_linear", _fake_row_linear), ("columns", _fake_columns)):
    _LIBRARY.impl(_name, _fake, "Meta")

_ours = torch.ops.palmtop_onnx
LINEAR = _ours.row_linear.default


# --- translations ---------------------------------------------------------------------------------------------------


def _row_zeros(x, zero):
    rows = op.Concat(op.Shape(x, start=0, end=-1), op.Constant(value_ints=[1]), axis=0)
    return op.ConstantOfShape(rows, value=onnx_ir.tensor([zero], dtype=onnx_ir.DataType.UINT8))


def _row_linear(x, weight, scales, zeros, zero, floor):
    """Rounding by blocks as long as a row divides and rounds in one pass. Several layers that read `x` share it.

    A row of zeros has steps of 0 and is divided by them: whatever integers come of that, times 0 they are 0.
    """
    sizes = op.Abs(x) if zero == _CENTRE else x
    largest = op.ReduceMax(sizes, op.Constant(value_ints=[-1]), keepdims=1)
    steps = op.Mul(largest, op.Constant(value_float=1 / (255 - zero)))
    if floor:
        steps = op.Max(steps, op.Constant(value_float=floor / zero))
    rounded = later.QuantizeLinear(x, steps, zeros, axis=-1, block_size=weight.shape[0])
    one = op.Constant(value_float=1.0)
    centre = op.Constant(value=onnx_ir.tensor(zero, dtype=onnx_ir.DataType.UINT8))
    return op.Mul(contrib.MatMulIntegerToFloat(rounded, weight, one, scales, centre), steps)


def _columns(x, start, end):
    bounds = (op.Constant(value_ints=[place]) for place in (start, end, -1))
    return op.Slice(x, *bounds)


TRANSLATIONS: dict[Callable, Any] = {
    _ours.row_zeros.default: _row_zeros,
    _ours.row_linear.default: _row_linear,
    _ours.columns.default: _columns,
}


# --- one layer --------------------------------------------------------------------------------------------------------


def fits(weight: QuantizedWeight) -> bool:
    """Whether this is how a layer with this weight is computed."""
    scheme = weight.scheme
    return scheme.bits == 8 and scheme.symmetric and scheme.activations != "none" and weight.scales.shape[1] == 1


def zeros(node: Node) -> tuple[Node, int, float]:
    """Of the rows that a layer reads: their zero points, the one number that these are, and how far below 0 rows go.

    The last is 0 where that is not known, or nothing is below.
    """
    source = layer_input(node)
    floor = _FLOORS.get(origin(source).target)
    zero = _CENTRE if floor is None else _LOW if floor else 0
    points = insert(node, _ours.row_zeros.default, (source, zero), _fake_row_zeros(source.meta["val"], zero))
    return points, zero, floor or 0.0


def share_zeros(program: ExportedProgram) -> None:
    """One tensor of zero points for all layers whose inputs have the same rows."""
    made: dict[str, Node] = {}
    for node in list(program.graph.nodes):
        if node.target is _ours.row_zeros.default:
            first = made.setdefault(f"{node.meta['val'].shape} {node.args[1]}", node)
            if first is not node:
                node.replace_all_uses_with(first)
                program.graph.erase_node(node)


# --- layers that read one activation --------------------------------------------------------------------------------


def merge(program: ExportedProgram, sites: Sequence[Site], weights: Mapping[str, QuantizedWeight]) -> set[str]:
    """Let row-wise layers that read one activation, as attention's projections do, be one product, and say which."""
    nodes = {node.name: node for node in program.graph.nodes}
    places = {node: place for place, node in enumerate(program.graph.nodes)}
    groups: dict[str, list[tuple[Site, Node]]] = {}
    for site in sites:
        node = nodes[site.uses[0].node]
        alone = len(site.uses) == 1 and site.uses[0].kind == "linear"
        if alone and fits(weights[site.name]) and _constant_bias(program, node):
            groups.setdefault(layer_input(node).name, []).append((site, node))
    found: set[str] = set()
    for members in groups.values():
        if len(members) >= _MERGED:
            members.sort(key=lambda member: places[member[1]])
            _one_product(program, members, weights)
            found.update(site.name for site, _ in members)
    return found


def _one_product(
    program: ExportedProgram, members: Sequence[tuple[Site, Node]], weights: Mapping[str, QuantizedWeight]
) -> None:
    name, first = members[0][0].name, members[0][1]
    integers = torch.cat([weights[site.name].integers for site, _ in members])
    scales = torch.cat([weights[site.name].scales.flatten() for site, _ in members])
    biases = [_bias_value(program, node) for _, node in members]
    arguments = (
        layer_input(first),
        add_buffer(program, f"{name}_integers", integers.t().contiguous()),
        add_buffer(program, f"{name}_row_scales", scales),
        *zeros(first),
    )
    product = insert(
        first,
        _ours.row_linear.default,
        arguments,
        _fake_row_linear(*(argument.meta["val"] for argument in arguments[:2])),
    )
    if any(bias is not None for bias in biases):
        whole = torch.cat(
            [
                torch.zeros(len(weights[site.name].integers)) if bias is None else bias
                for (site, _), bias in zip(members, biases, strict=True)
            ]
        )
        bias = add_buffer(program, f"{name}_biases", whole)
        product = insert(first, aten.add.Tensor, (product, bias), product.meta["val"])
    start = 0
    for site, node in members:
        end = start + len(weights[site.name].integers)
        value = _fake_columns(product.meta["val"], start, end)
        node.replace_all_uses_with(insert(node, _ours.columns.default, (product, start, end), value))
        program.graph.erase_node(node)
        start = end


def _constant_bias(program: ExportedProgram, node: Node) -> bool:
    return bias_of(node) is None or _bias_value(program, node) is not None


def _bias_value(program: ExportedProgram, node: Node) -> torch.Tensor | None:
    """A layer's bias where it is a parameter of one number for each output."""
    bias, signature = bias_of(node), program.graph_signature
    name = signature.inputs_to_parameters.get(bias.name) if isinstance(bias, Node) else None
    value = program.state_dict.get(name or "")
    return value.detach().float() if value is not None and value.dim() == 1 else None
