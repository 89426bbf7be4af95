"""Rewrites that let XNNPACK take the whole of a transformer in one piece, each exact to the noise of fp32.

A `.pte` runs what XNNPACK accepts inside delegates and the rest, operation by operation, on ExecuTorch's own kernels.
XNNPACK has no attention, no layer norm, no sums along an axis and no slices of tensors of unknown size, multiplies
3-D tensors only, and takes a reshape only when at most one size of the result is unknown. Left alone, those break a
model into several delegates a layer. Here they are written in what XNNPACK has.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils._sympy.functions import PythonMod

from ..generation.write_at import WRITE_AT
from ..graph import Builder, add_constant, arguments_of, insert, same_shape, value_of
from .executorch_attention import attention
from .executorch_half import GELU_COEFFICIENTS, GELU_RANGE

aten = torch.ops.aten

_SDPA = aten.scaled_dot_product_attention.default

# Up to this many columns a slice of the last axis is cheaper as a product with a 0/1 matrix than outside a delegate.
_WIDEST_SELECTION = 128

# Work on one element at a time, with the usual broadcasting.
_ELEMENTWISE = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.neg.default,
    aten.tanh.default,
    aten.sigmoid.default,
    aten.exp.default,
    aten.clamp.default,
    aten.relu.default,
}
_SOFTMAX = (aten.softmax.int, aten._softmax.default)


def rewrite(program: ExportedProgram, rounds: bool = False) -> None:
    """Apply every rewrite to a program, in place. The program's dictionaries of weights must be its own.

    rounds: whether layers round their inputs to integers (see `executorch_attention.py`).
    """
    _apply(program, _REWRITES | ({_SDPA: functools.partial(attention, rounds=True)} if rounds else {}))
    _drop_leading_one(program)
    _half_numbers(program)
    program.graph.eliminate_dead_code()
    program.graph.lint()
    program.graph_module.recompile()


def _apply(program: ExportedProgram, table: dict[Any, Callable[[ExportedProgram, Node], Node | None]]) -> None:
    for node in list(program.graph.nodes):
        change = table.get(node.target)
        result = change(program, node) if change is not None else None
        if result is not None:
            node.replace_all_uses_with(result)
            program.graph.erase_node(node)


# --- operations -----------------------------------------------------------------------------------------------------


def _matmul(program: ExportedProgram, node: Node) -> Node | None:
    """A product of 4-D tensors with one batch and equal heads, in 3-D."""
    shapes = [value_of(argument).shape for argument in node.args[:2]]
    if any(len(shape) != 4 or not isinstance(shape[1], int) for shape in shapes) or shapes[0][1] != shapes[1][1]:
        return None
    if str(shapes[0][0]) != str(shapes[1][0]):
        return None
    build = Builder(node)
    left, right = (build(aten.flatten.using_ints, each, 0, 1) for each in node.args[:2])
    product = build(aten.bmm.default, left, right)
    if str(shapes[0][0]) == "1":
        return build(aten.unsqueeze.default, product, 0)
    return build(aten.unflatten.int, product, 0, [-1, shapes[0][1]])


def _layer_norm(program: ExportedProgram, node: Node) -> Node | None:
    """Layer norm over the last axis, its two means as products with a vector of 1/n."""
    given = arguments_of(node)
    source, shape = given["input"], given["normalized_shape"]
    if len(shape) != 1 or value_of(source).dtype != torch.float32:
        return None
    build = Builder(node)
    average = _averaging(program, shape[0])
    centered = build(aten.sub.Tensor, source, build(aten.linear.default, source, average))
    variance = build(aten.linear.default, build(aten.mul.Tensor, centered, centered), average)
    spread = build(aten.rsqrt.default, build(aten.add.Tensor, variance, given["eps"]))
    result = build(aten.mul.Tensor, centered, spread)
    if given["weight"] is not None:
        result = build(aten.mul.Tensor, result, given["weight"])
    if given["bias"] is not None:
        result = build(aten.add.Tensor, result, given["bias"])
    return result


def _averaging(program: ExportedProgram, size: int) -> Node:
    return add_constant(program, f"palmtop_average_{size}", torch.full((1, size), 1.0 / size))


def _reduction(program: ExportedProgram, node: Node) -> Node | None:
    """A mean or sum over the last axis, as a product with a vector of 1/n or of ones."""
    given = arguments_of(node)
    source, axes = given["self"], given["dim"]
    shape = value_of(source).shape
    if (
        not axes
        or len(axes) != 1
        or axes[0] not in (-1, len(shape) - 1)
        or len(shape) < 2
        or not isinstance(shape[-1], int)
        or value_of(source).dtype != torch.float32
        or value_of(node).dtype != torch.float32
    ):
        return None
    build = Builder(node)
    if node.target is aten.mean.dim:
        vector = _averaging(program, shape[-1])
    else:
        vector = add_constant(program, f"palmtop_ones_{shape[-1]}", torch.ones(1, shape[-1]))
    result = build(aten.linear.default, source, vector)
    return result if given["keepdim"] else build(aten.squeeze.dim, result, -1)


def _vector_norm(program: ExportedProgram, node: Node) -> Node | None:
    """The Euclidean norm along the last axis."""
    given = arguments_of(node)
    source, axes = given["self"], given["dim"]
    shape = value_of(source).shape
    if given["ord"] != 2 or not axes or len(axes) != 1 or axes[0] not in (-1, len(shape) - 1) or len(shape) < 2:
        return None
    if (
        not isinstance(shape[-1], int)
        or value_of(source).dtype != torch.float32
        or value_of(node).dtype != torch.float32
    ):
        return None
    build = Builder(node)
    ones = add_constant(program, f"palmtop_ones_{shape[-1]}", torch.ones(1, shape[-1]))
    result = build(aten.sqrt.default, build(aten.linear.default, build(aten.mul.Tensor, source, source), ones))
    return result if given["keepdim"] else build(aten.squeeze.dim, result, -1)


def _power(program: ExportedProgram, node: Node) -> Node | None:
    """Small powers as products (the tanh form of GELU has a cube, norms have squares)."""
    source, exponent = node.args[:2]
    if exponent not in (2, 3) or not value_of(source).dtype.is_floating_point:
        return None
    build = Builder(node)
    square = build(aten.mul.Tensor, source, source)
    return square if exponent == 2 else build(aten.mul.Tensor, square, source)


def _slice(program: ExportedProgram, node: Node) -> Node | None:
    """A slice of the last, short axis (the halves that rotary positions exchange), as a product with a 0/1 matrix."""
    given = arguments_of(node)
    source = given["self"]
    shape = value_of(source).shape
    width = shape[-1] if shape else 0
    if (
        given["dim"] not in (-1, len(shape) - 1)
        or all(isinstance(size, int) for size in shape)  # XNNPACK slices what it knows the size of
        or not isinstance(width, int)
        or width > _WIDEST_SELECTION
        or given["step"] != 1
        or isinstance(given["start"], Node)
        or isinstance(given["end"], Node)
        or value_of(source).dtype not in (torch.float32, torch.float16)
    ):
        return None
    start, stop, _ = slice(given["start"], given["end"]).indices(width)
    rows = torch.eye(width, dtype=value_of(source).dtype)[start:stop].clone()
    kind = "half" if rows.dtype == torch.float16 else "float"
    matrix = add_constant(program, f"palmtop_select_{start}_{stop}_of_{width}_{kind}", rows)
    return Builder(node)(aten.linear.default, source, matrix)


def _gelu(program: ExportedProgram, node: Node) -> Node | None:
    """GELU by tanh written out: XNNPACK in executorch 1.4.1 takes it for the exact one, 1e-3 off and no word said.

    In fp16, for which XNNPACK has no kernel, both of PyTorch's forms: they differ by less than fp16 rounds.
    """
    source, build = node.args[0], Builder(node)
    if value_of(source).dtype != torch.float16:
        if arguments_of(node).get("approximate", "none") != "tanh":
            return None
        cube = build(aten.mul.Tensor, build(aten.mul.Tensor, source, source), source)
        inner = build(aten.add.Tensor, source, build(aten.mul.Tensor, cube, 0.044715))
        bent = build(aten.tanh.default, build(aten.mul.Tensor, inner, math.sqrt(2 / math.pi)))
        half = build(aten.mul.Tensor, source, 0.5)
        return build(aten.mul.Tensor, half, build(aten.add.Tensor, bent, 1.0))
    near = build(aten.clamp.default, source, -GELU_RANGE, GELU_RANGE)
    square = build(aten.mul.Tensor, near, near)
    first, second, third = GELU_COEFFICIENTS
    inner = build(aten.add.Tensor, build(aten.mul.Tensor, square, third), second)
    inner = build(aten.add.Tensor, build(aten.mul.Tensor, inner, square), first)
    return build(aten.mul.Tensor, source, build(aten.sigmoid.default, build(aten.mul.Tensor, near, inner)))


def _pool(program: ExportedProgram, node: Node) -> Node | None:
    """Pooling with its stride written out: executorch 1.4.1 looks for it where it need not be given."""
    given = arguments_of(node)
    if len(node.args) > 2 and node.args[2]:
        return None
    given["stride"] = given["stride"] or given["kernel_size"]
    return Builder(node)(node.target, *given.values())


def _new_empty(program: ExportedProgram, node: Node) -> Node:
    """Memory to be written to later, as zeros: the kernel for what is in no order of its own takes no unknown sizes."""
    return insert(node.graph, node, aten.full.default, (node.args[1], 0), {"dtype": value_of(node).dtype})


def _write_at(program: ExportedProgram, node: Node) -> Node:
    """New keys or values written into a cache by their places, which ExecuTorch then does in place."""
    cache, new, start = node.args
    build, length = Builder(node), value_of(new).shape[2]
    if not isinstance(length, int):
        length = build(aten.sym_size.int, new, 2)
    places = build(aten.add.Tensor, build(aten.arange.start_step, 0, length, 1), start)
    return build(aten.index_put.default, cache, [None, None, places], new)


def _remainder(program: ExportedProgram, node: Node) -> Node | None:
    """The remainder of what may be negative (`-length % 8`), by the quotient.

    ExecuTorch's has the sign of the number, as in C, where Python's has the divisor's; its quotients are Python's.
    Sizes below zero end the process that runs the file.
    """
    value = node.meta["val"]
    if not isinstance(value, torch.SymInt) or not value.node.expr.has(PythonMod):
        return None
    number, divisor = node.args

    def call(target: Callable[..., Any], *args: Any) -> Node:
        result = program.graph.call_function(target, args)
        result.meta["val"] = target(*torch.fx.node.map_arg(args, value_of))
        return result

    with program.graph.inserting_before(node):
        whole = call(operator.floordiv, number, divisor)
        return call(operator.sub, number, call(operator.mul, whole, divisor))


_REWRITES: dict[Any, Callable[[ExportedProgram, Node], Node | None]] = {
    _SDPA: attention,
    aten.matmul.default: _matmul,
    aten.layer_norm.default: _layer_norm,
    aten.mean.dim: _reduction,
    aten.sum.dim_IntList: _reduction,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.pow.Tensor_Scalar: _power,
    aten.slice.Tensor: _slice,
    aten.gelu.default: _gelu,
    aten.max_pool2d.default: _pool,
    aten.avg_pool2d.default: _pool,
    aten.new_empty.default: _new_empty,
    operator.mod: _remainder,
    WRITE_AT: _write_at,
}


# --- whole graphs ---------------------------------------------------------------------------------------------------


def _drop_leading_one(program: ExportedProgram) -> None:
    """Carry attention scores (1, heads, length, length) as (heads, length, length) from one product to the next.

    Between two products in 3-D stand additions of biases and masks, and the softmax. A reshape with two unknown sizes
    is what XNNPACK refuses, so the axis of one is not put back until something else asks for it.
    """
    graph = program.graph
    thin: dict[Node, Node] = {}
    for node in list(graph.nodes):
        if node.target is aten.unsqueeze.default and node.args[1] == 0 and value_of(node).dim() == 4:
            thin[node] = node.args[0]
        elif node.target in (aten.reshape.default, *_SOFTMAX, *_ELEMENTWISE):
            result = _thinned(node, thin)
            if result is not None:
                again = Builder(node)(aten.unsqueeze.default, result, 0)
                thin[again] = result
                node.replace_all_uses_with(again)
                graph.erase_node(node)


def _thinned(node: Node, thin: dict[Node, Node]) -> Node | None:
    """The call without the leading axis of its 4-D operands, when one of them is known without."""
    if not any(argument in thin for argument in node.all_input_nodes) or value_of(node).dim() != 4 or node.kwargs:
        return None
    if node.target is aten.reshape.default:
        same = same_shape(value_of(node.args[0]).shape, value_of(node).shape)
        return thin[node.args[0]] if same else None
    operands = [argument for argument in node.args if isinstance(argument, Node)]
    if any(value_of(operand).dim() == 4 and str(value_of(operand).shape[0]) != "1" for operand in operands):
        return None
    build = Builder(node)
    arguments = list(node.args)
    if node.target in _SOFTMAX and arguments[1] >= 0:
        arguments[1] -= 1
        if arguments[1] < 0:
            return None
    for place, argument in enumerate(arguments):
        if isinstance(argument, Node) and value_of(argument).dim() == 4:
            arguments[place] = thin[argument] if argument in thin else build(aten.squeeze.dim, argument, 0)
    return build(node.target, *arguments)


def _half_numbers(program: ExportedProgram) -> None:
    """Numbers that meet fp16 tensors become fp16 constants; executorch would write them in fp32, and cast each run."""
    for node in list(program.graph.nodes):
        if node.target not in _ELEMENTWISE or getattr(node.meta.get("val"), "dtype", None) != torch.float16:
            continue
        if node.target is aten.clamp.default or len(node.args) != 2 or not isinstance(node.args[1], (int, float)):
            continue
        number = node.args[1]
        name = f"palmtop_number_{float(number)!r}".translate(str.maketrans(".-+", "pmp"))
        constant = add_constant(program, name, torch.tensor(float(number), dtype=torch.float16))
        node.args = (node.args[0], constant)
