"""A plan's integers in a `.pte`: which of ExecuTorch's and XNNPACK's kernels holds which scheme.

- Layers go to XNNPACK: 8 or 4 bits a channel, or 4 bits in blocks of a multiple of 32, all symmetric, with inputs that
  are rounded row by row or left in fp32 (blocks need rounded inputs).
- Embedding tables are read by ExecuTorch's quantized kernels, which take any block and any zero point.
- A layer that XNNPACK has no kernel for keeps its integers too: the same quantized kernels turn them into fp32 numbers
  each time the program runs. So does a vocabulary that an embedding and a layer share, which is then stored once.
- Convolutions in two dimensions whose inputs are rounded too go to XNNPACK, which rounds by the range of an image.
  Others stay in fp32, holding the numbers that the integers stand for; the artifact lists them as `kept`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from executorch.exir.passes import _quant_patterns_and_replacements  # noqa: F401 - defines the embedding operations
from torch.export import ExportedProgram
from torch.fx import Node

from ...quantize.sites import Site, Use, find_sites
from ...quantize.weights import QuantizedWeight
from ...runtime.errors import RequestError
from ..capture import Captured
from ..graph import add_constant, insert
from ..modules import user_path
from .executorch_integers import integer_linear, linear_of_table

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed

_XNNPACK_BLOCK = 32
# The least distance between the numbers of a rounded image.
_SMALLEST = torch.finfo(torch.float32).eps


def check(captured: Captured) -> None:
    """Refuse what a `.pte` cannot hold. Raises RequestError naming the weight, the scheme and the nearest one."""
    for name, weight in captured.quantized.items():
        scheme = weight.scheme
        nearest = None
        if scheme.form != "linear" or scheme.bits not in (8, 4):
            nearest = "int4 per block of 32, dynamic activations" if scheme.bits < 6 else "int8 per channel"
        elif scheme.activations == "static":
            nearest = f"{scheme}".replace("static", "dynamic")
        if nearest is not None:
            raise RequestError(
                f"ExecuTorch has no kernel for {scheme}, the scheme of {user_path(name)}. "
                f"The nearest that it has: {nearest}."
            )


def kept(captured: Captured) -> list[str]:
    """The weights of a plan that the file holds in fp32, by the name that the user's model has for them."""
    nodes = {node.name: node for node in captured.program.graph.nodes}
    stored = {site.name for site in find_sites(captured.program) if not _is_kept(nodes, site, captured.quantized)}
    return [user_path(name) for name in captured.quantized if name not in stored]


def _is_kept(nodes: Mapping[str, Node], site: Site, quantized: Mapping[str, QuantizedWeight]) -> bool:
    if site.name not in quantized:
        return True
    convolutions = [nodes[use.node] for use in site.uses if use.kind == "convolution"]
    return not all(_is_integer_convolution(node, quantized[site.name]) for node in convolutions)


def _is_integer_convolution(node: Node, weight: QuantizedWeight) -> bool:
    """Whether XNNPACK has this convolution on integers: in two dimensions, not depthwise, its input rounded."""
    groups = node.args[6] if len(node.args) > 6 else 1
    return (
        node.target is aten.conv2d.default
        and weight.scheme.activations == "dynamic"
        and weight.scheme.bits == 8
        and has_kernel(weight)
        and not isinstance(node.args[4] if len(node.args) > 4 else 0, str)
        and (groups == 1 or weight.shape[1] > 1)
    )


def store_integers(program: ExportedProgram, quantized: Mapping[str, QuantizedWeight]) -> None:
    """Let a program compute with integers instead of the weights that a plan quantized, in place.

    The program's dictionary of weights must be its own.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    for site in find_sites(program):
        if not _is_kept(nodes, site, quantized):
            store = _Stored(program, site, quantized[site.name])
            for use in site.uses:
                store.replace(nodes[use.node], use)
    _drop_unread(program, set(quantized))
    program.graph.lint()
    program.graph_module.recompile()


class _Stored:
    """The constants of one weight, each added when something first reads it."""

    def __init__(self, program: ExportedProgram, site: Site, weight: QuantizedWeight):
        self._program, self._weight = program, weight
        self._name = f"palmtop_integers_{site.name.replace('.', '_')}"
        self._constants: dict[str, Node] = {}
        # A shared table is multiplied as integers only where that lets a layer round its inputs.
        self._multiplies = has_kernel(weight) and (
            weight.scheme.activations == "dynamic" or all(use.kind == "linear" for use in site.uses)
        )
        # Of two 4-bit integers in a byte XNNPACK has the first in the lower half, tables in the upper: with inputs that
        # have changed places, both read the same bytes (see `executorch_shared`).
        self._swaps = self._multiplies and site.tied and _packs(weight)

    def replace(self, node: Node, use: Use) -> None:
        """Write the call anew, on integers."""
        if use.kind == "convolution":
            self._convolution(node)
            return
        result = self._embedding(node, node.args[1]) if use.kind == "embedding" else self._linear(node)
        node.replace_all_uses_with(result)
        self._program.graph.erase_node(node)

    def _constant(self, kind: str, make: Callable[[], torch.Tensor]) -> Node:
        if kind not in self._constants:
            self._constants[kind] = add_constant(self._program, f"{self._name}_{kind}", make())
        return self._constants[kind]

    def _linear(self, node: Node) -> Node:
        value, bias = _linear_arguments(node)
        weight = self._weight
        if self._multiplies:
            rounded = weight.scheme.activations == "dynamic"
            if self._swaps:
                value = _swapped(node, value)
                integers = self._constant("swapped", lambda: weight.integers.unflatten(1, (-1, 2)).flip(-1).flatten(1))
            else:
                integers = self._constant("layer", lambda: weight.integers)
            scales = self._constant("scales", lambda: weight.scales)
            # XNNPACK scales a bias too when a layer's inputs are not rounded, and reads none beside a computed weight.
            inside = rounded and bias is not None and bias.op == "placeholder" and bias.meta["val"].dim() == 1
            arguments = (value, integers, scales, bias if inside else None, weight.scheme.bits, rounded)
            result = insert(node.graph, node, integer_linear, arguments)
            bias = None if inside else bias
        else:
            rows = insert(node.graph, node, aten.arange.start_step, (0, weight.integers.shape[0], 1))
            result = insert(node.graph, node, linear_of_table, (value, self._embedding(node, rows)))
        return result if bias is None else insert(node.graph, node, aten.add.Tensor, (result, bias))

    def _convolution(self, node: Node) -> None:
        """Between the roundings by which executorch knows a convolution on integers."""
        weight, graph = self._weight, node.graph
        limits = (-128, 127, torch.int8)
        found = insert(graph, node, decomposed.choose_qparams.tensor, (node.args[0], -128, 127, _SMALLEST, torch.int8))
        scale, zero = (insert(graph, node, operator.getitem, (found, place)) for place in (0, 1))
        rounded = insert(graph, node, decomposed.quantize_per_tensor.tensor, (node.args[0], scale, zero, *limits))
        value = insert(graph, node, decomposed.dequantize_per_tensor.tensor, (rounded, scale, zero, *limits))
        integers = self._constant("layer", lambda: weight.integers.reshape(weight.shape))
        scales = self._constant("scales", lambda: weight.scales.reshape(-1))
        zeros = self._constant("zeros", lambda: torch.zeros(len(weight.scales), dtype=torch.int64))
        numbers = insert(graph, node, decomposed.dequantize_per_channel.default, (integers, scales, zeros, 0, *limits))
        node.args = (value, numbers, *node.args[2:])

    def _embedding(self, node: Node, indices: Any) -> Node:
        weight = self._weight
        packs = _packs(weight)
        table = self._constant("table", lambda: _packed(weight.integers) if packs else weight.integers)
        # Zero points have the dtype of the result and that of the scales.
        short = weight.zero_points is None and bool((weight.scales.half().float() == weight.scales).all())
        kind = torch.float16 if short else torch.float32
        scales = self._constant("table_scales", lambda: weight.scales.to(kind))
        zeros = None
        if weight.zero_points is not None:
            numbers = weight.zero_points
            zeros = self._constant("table_zeros", lambda: numbers.to(kind))
        low, high = (-8, 7) if packs else (-128, 127)
        operation = decomposed.embedding_4bit if packs else decomposed.embedding_byte
        arguments = (table, scales, zeros, low, high, indices)
        if short:
            return insert(node.graph, node, operation.dtype, arguments, {"dtype": torch.float32})
        return insert(node.graph, node, operation.default, arguments)


def has_kernel(weight: QuantizedWeight) -> bool:
    """Whether XNNPACK multiplies with these integers."""
    if weight.zero_points is not None:
        return False
    if weight.scales.shape[1] == 1:
        return True
    scheme = weight.scheme
    blocks = scheme.bits == 4 and scheme.activations == "dynamic" and weight.block % _XNNPACK_BLOCK == 0
    return blocks and bool((weight.scales.bfloat16().float() == weight.scales).all())


def _linear_arguments(node: Node) -> tuple[Any, Any]:
    """Input and bias, or None, of a layer in any of its forms."""
    if node.target is aten.addmm.default:
        return node.args[1], node.args[0]
    return node.args[0], node.args[2] if node.target is aten.linear.default and len(node.args) > 2 else None


def _packs(weight: QuantizedWeight) -> bool:
    """Whether a table has two integers a byte."""
    return weight.scheme.bits == 4 and weight.integers.shape[1] % 2 == 0


def _swapped(node: Node, value: Node) -> Node:
    """What a layer reads, its channels changed places in pairs."""
    pairs = insert(node.graph, node, aten.unflatten.int, (value, -1, [-1, 2]))
    return insert(
        node.graph, node, aten.flatten.using_ints, (insert(node.graph, node, aten.flip.default, (pairs, [-1])), -2)
    )


def _packed(integers: torch.Tensor) -> torch.Tensor:
    """Two 4-bit integers a byte, the first in the upper half, as ExecuTorch's kernel reads them."""
    shifted = (integers + 8).view(torch.uint8)
    return (shifted[:, 0::2] << 4) | shifted[:, 1::2]


def _drop_unread(program: ExportedProgram, names: set[str]) -> None:
    """Take fp32 weights that nothing reads any more out of the program."""
    signature = program.graph_signature
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec in list(signature.input_specs):
        if spec.target in names and not nodes[spec.arg.name].users:
            program.graph.erase_node(nodes[spec.arg.name])
            signature.input_specs.remove(spec)
            del program.state_dict[spec.target]
