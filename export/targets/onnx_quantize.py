"""A plan's integers in ONNX: what ONNX Runtime computes with, layer by layer.

- Layers of 8 bits a row whose inputs are rounded as they run: `MatMulIntegerToFloat` (`onnx_rows`). A vocabulary that
  is table and head is not: what a table is read from is laid out for `MatMulNBits`, and is stored once.
- Other layers: `MatMulNBits`, with scales repeated where a row has one. With `activations`, it rounds its inputs too,
  in blocks of a row (accuracy level 4).
- Tables: `GatherBlockQuantized`. Convolutions, and rows that no block size divides: `DequantizeLinear`.

The operations are written into the captured program as operations of our own, which exist only on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir
import torch
from onnxscript import opset18 as op
from torch.export import ExportedProgram
from torch.fx import Node

from ...quantize.program import add_buffer, insert
from ...quantize.sites import Site, Use, bias_of, find_sites, layer_input
from ...quantize.weights import QuantizedWeight
from ...runtime.errors import RequestError
from ..capture import Captured
from ..modules import user_path
from ..normalize import prune
from . import onnx_rows
from .onnx_contrib import contrib

aten = torch.ops.aten
_BLOCKS = (128, 64, 32, 16)

_LIBRARY = torch.library.Library("palmtop_onnx", "DEF")
_LIBRARY.define(
    "block_linear(Tensor x, Tensor weight, Tensor scales, Tensor? zeros, int rows, int bits, int block, bool rounded)"
    " -> Tensor"
)
_LIBRARY.define(
    "block_embedding(Tensor weight, Tensor indices, Tensor scales, Tensor? zeros, int columns, int bits, int block)"
    " -> Tensor"
)
_LIBRARY.define("dequantize(Tensor weight, Tensor scales, Tensor? zeros, int axis) -> Tensor")


def _fake_block_linear(x: torch.Tensor, weight: Any, scales: Any, zeros: Any, rows: int, *rest: Any) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], rows))


def _fake_block_embedding(weight: Any, indices: Any, scales: torch.Tensor, zeros: Any, columns: int, *rest: Any) -> Any:
    return scales.new_empty((*indices.shape, columns))


def _fake_dequantize(weight: torch.Tensor, scales: torch.Tensor, zeros: Any, axis: int) -> torch.Tensor:
    return scales.new_empty(weight.shape)


for _name, _fake in (
    ("block_linear", _fake_block_linear),
    ("block_embedding", _fake_block_embedding),
    ("dequantize", _fake_dequantize),
):
    _LIBRARY.impl(_name, _fake, "Meta")

_ours = torch.ops.palmtop_onnx


# --- translations ---------------------------------------------------------------------------------------------------


def _block_linear(x, weight, scales, zeros, rows, bits, block, rounded):
    columns = x.shape[-1]
    level = 4 if rounded else 1
    return contrib.MatMulNBits(
        x, weight, scales, zeros, K=columns, N=rows, bits=bits, block_size=block, accuracy_level=level
    )


def _block_embedding(weight, indices, scales, zeros, columns, bits, block):
    flat = op.Reshape(weight, op.Constant(value_ints=[0, -1])) if len(weight.shape) == 3 else weight
    return contrib.GatherBlockQuantized(
        flat, indices, scales, zeros, bits=bits, block_size=block, gather_axis=0, quantize_axis=1
    )


def _dequantize(weight, scales, zeros, axis):
    return op.DequantizeLinear(weight, scales, zeros, axis=axis)


TRANSLATIONS: dict[Callable, Any] = {
    **onnx_rows.TRANSLATIONS,
    _ours.block_linear.default: _block_linear,
    _ours.block_embedding.default: _block_embedding,
    _ours.dequantize.default: _dequantize,
}


def state_types(model: onnx_ir.Model) -> None:
    """Say that ONNX Runtime's operations give fp32, which nothing infers for operations outside the standard."""
    for node in model.graph.all_nodes():
        if node.domain == contrib.domain:
            for output in node.outputs:
                output.type = output.type or onnx_ir.TensorType(onnx_ir.DataType.FLOAT)


# --- the rewrite ----------------------------------------------------------------------------------------------------


def store_integers(program: ExportedProgram, captured: Captured) -> None:
    """Let a private program compute with the captured plan's integers, in place.

    Raises:
        RequestError: a scheme that ONNX Runtime has no kernel for.
    """
    if not captured.quantized:
        return
    program._state_dict = dict(program.state_dict)
    sites = [site for site in find_sites(program) if site.name in captured.quantized]
    merged = onnx_rows.merge(program, sites, captured.quantized)
    nodes = {node.name: node for node in program.graph.nodes}
    for site in sites:
        stored = _Stored(program, site, captured.quantized[site.name])
        if site.name in merged:
            continue
        for use in site.uses:
            _rewrite(stored, nodes[use.node], use)
    onnx_rows.share_zeros(program)
    prune(program)
    program.graph.lint()
    program.graph_module.recompile()


class _Stored:
    """A weight's integers in the layouts that its uses ask for, each put into the program once."""

    def __init__(self, program: ExportedProgram, site: Site, weight: QuantizedWeight):
        self.program, self.site, self.weight = program, site, weight
        self._nodes: dict[str, Node] = {}
        scheme = weight.scheme
        nearest = None
        if scheme.form != "linear":
            nearest = "int8 per channel" if scheme.bits > 4 else "int4 per block of 32"
        elif scheme.activations == "static":
            nearest = str(scheme).replace("static", "dynamic")
        if nearest is not None:
            raise RequestError(
                f"ONNX Runtime has no kernel for {scheme}, the scheme of {user_path(site.name)}. "
                f"The nearest that it has: {nearest}."
            )

    def buffer(self, role: str, make: Callable[[], torch.Tensor]) -> Node:
        if role not in self._nodes:
            self._nodes[role] = add_buffer(self.program, f"{self.site.name}_{role}", make())
        return self._nodes[role]

    @property
    def block(self) -> int | None:
        """How many columns have one scale in `MatMulNBits`: as planned, or a divisor of the row, its scale repeated."""
        columns, block = self.weight.integers.shape[1], self.weight.block
        if block in _BLOCKS:
            return block
        return next((size for size in _BLOCKS if columns % size == 0 and block % size == 0), None)

    def packed(self) -> Node:
        """Unsigned integers, (rows, blocks, bytes of a block), low bits first."""

        def make() -> torch.Tensor:
            bits = self.weight.scheme.bits
            unsigned = (self.weight.integers.short() + 2 ** (bits - 1)).to(torch.uint8)
            blocks = unsigned.unflatten(1, (-1, self.block or 1))
            return blocks if bits == 8 else blocks[..., 0::2] | (blocks[..., 1::2] << 4)

        return self.buffer("packed", make)

    def scales(self) -> Node:
        """(rows, blocks) fp32."""
        repeats = self.weight.block // (self.block or self.weight.block)
        return self.buffer("scales", lambda: self.weight.scales.repeat_interleave(repeats, 1).contiguous())

    def zeros(self) -> Node | None:
        """Zero points as unsigned integers, packed along the blocks; None for symmetric schemes."""
        points = self.weight.zero_points
        if points is None:
            return None

        def make() -> torch.Tensor:
            bits = self.weight.scheme.bits
            repeats = self.weight.block // (self.block or self.weight.block)
            unsigned = (points.short() + 2 ** (bits - 1)).to(torch.uint8).repeat_interleave(repeats, 1)
            if bits == 8:
                return unsigned.contiguous()
            even = torch.nn.functional.pad(unsigned, (0, unsigned.shape[1] % 2))
            return even[:, 0::2] | (even[:, 1::2] << 4)

        return self.buffer("zeros", make)


def _rewrite(stored: _Stored, node: Node, use: Use) -> None:
    weight = stored.weight
    if use.kind == "embedding" and stored.block is not None:
        arguments = (stored.packed(), node.args[1], stored.scales(), stored.zeros())
        size = weight.integers.shape[1]
        _replace(node, _ours.block_embedding.default, (*arguments, size, weight.scheme.bits, stored.block))
    elif use.kind == "linear" and onnx_rows.fits(weight) and not (stored.site.tied and stored.block is not None):
        integers = stored.buffer("integers", lambda: weight.integers.t().contiguous())
        scales = stored.buffer("row_scales", lambda: weight.scales.flatten().contiguous())
        _replace_linear(node, onnx_rows.LINEAR, (integers, scales, *onnx_rows.zeros(node)))
    elif use.kind == "linear" and stored.block is not None:
        rounded = weight.scheme.activations != "none"
        rows = weight.integers.shape[0]
        integers = (stored.packed(), stored.scales(), stored.zeros())
        settings = (rows, weight.scheme.bits, stored.block, rounded)
        _replace_linear(node, _ours.block_linear.default, (*integers, *settings))
    else:
        _dequantized(stored, node)


def _dequantized(stored: _Stored, node: Node) -> None:
    """Integers in the parameter's own layout, turned into floats before the operation that reads them."""
    weight = stored.weight
    if weight.scales.shape[1] != 1 or weight.scheme.bits != 8:
        raise RequestError(
            f"{user_path(stored.site.name)}: {weight.scheme} cannot be stored in ONNX with rows of "
            f"{weight.integers.shape[1]}. The nearest that can: int8 per channel."
        )
    layout = weight.integers.t() if weight.transposed else weight.integers.reshape(weight.shape)
    axis = len(weight.shape) - 1 if weight.transposed else 0
    integers = stored.buffer("integers", layout.contiguous)
    scales = stored.buffer("row_scales", lambda: weight.scales.flatten().contiguous())
    points = weight.zero_points
    zeros = None if points is None else stored.buffer("row_zeros", points.flatten().contiguous)
    old = next(source for source in node.all_input_nodes if source.name == stored.site.placeholder)
    node.replace_input_with(old, _insert(node, _ours.dequantize.default, (integers, scales, zeros, axis)))


def _replace_linear(node: Node, operation: Callable, arguments: tuple) -> None:
    bias = bias_of(node)
    product = _insert(node, operation, (layer_input(node), *arguments))
    if isinstance(bias, Node):
        product = _insert(node, aten.add.Tensor, (product, bias))
    node.replace_all_uses_with(product)
    node.graph.erase_node(node)


def _replace(node: Node, operation: Callable, arguments: tuple) -> None:
    node.replace_all_uses_with(_insert(node, operation, arguments))
    node.graph.erase_node(node)


def _insert(before: Node, operation: Callable, arguments: tuple) -> Node:
    value = before.meta["val"]
    if operation is _ours.dequantize.default:
        integers = arguments[0].meta["val"]
        value = integers.new_empty(integers.shape, dtype=torch.float32)
    return insert(before, operation, arguments, value)
