"""Linear layers on the rows of a matrix: `Gemm`, which adds the bias as it multiplies.

PyTorch's layers read (batch, length, width), `Gemm` reads matrices. Between two reshapes, which cost a call and nothing
else, a stretch of layers, norms, activations and residual sums works on (batch x length, width) just as well, and each
layer is one operation, not a product and an addition. ONNX Runtime does not do so by itself. Execution providers whose
products are of matrices alone (XNNPACK's, NNAPI's) can take such layers. Every number is computed from the same numbers
as before; the bias is what a sum begins with, not what it ends with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeGuard

import onnx_ir

_UNARY = frozenset({"Gelu", "Relu", "Tanh", "Sigmoid", "Erf"})
_BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})


def layers_on_rows(model: onnx_ir.Model) -> None:
    """Let layers with a bias, and what is computed between them row by row, read matrices, in place.

    Left as it is where more reshapes would come in than operations go.
    """
    stretch = _found(model.graph)
    if stretch.gain > 0:
        _Rewriting(model.graph).apply(stretch)


@dataclass
class _Stretch:
    """What is to work on rows. `layers`: products with the additions of their biases (`biases`: these alone); `moved`:
    all that will read and give matrices, those products among them, in order.
    """

    layers: dict[onnx_ir.Node, onnx_ir.Node] = field(default_factory=dict)
    biases: set[onnx_ir.Node] = field(default_factory=set)
    moved: dict[onnx_ir.Node, None] = field(default_factory=dict)
    norms: int = 0

    def gives(self, value: onnx_ir.Value) -> bool:
        return value.producer() in self.moved or value.producer() in self.biases

    @property
    def entering(self) -> list[onnx_ir.Value]:
        """Values of three axes that have to be made matrices."""
        found: dict[onnx_ir.Value, None] = {}
        for node in self.moved:
            found.update(dict.fromkeys(value for value in node.inputs if _wide(value) and not self.gives(value)))
        return list(found)

    @property
    def leaving(self) -> list[onnx_ir.Value]:
        """Values of the stretch that are read elsewhere."""
        ends = [self.layers.get(node, node).outputs[0] for node in self.moved]
        return [
            value
            for value in ends
            if value.is_graph_output() or any(reader not in self.moved for reader, _ in value.uses())
        ]

    @property
    def gain(self) -> int:
        """How many operations less: a layer is one, not two; norms need no reshape to be kept from sums."""
        return len(self.layers) + self.norms - len(self.entering) - len(self.leaving)


def _found(graph: onnx_ir.Graph) -> _Stretch:
    stretch = _Stretch()
    for node in graph:
        bias = _bias(node)
        if bias is not None:
            stretch.layers[node] = bias
            stretch.biases.add(bias)
            stretch.moved[node] = None
        elif node not in stretch.biases and _row_by_row(node, stretch):
            stretch.moved[node] = None
            stretch.norms += node.op_type == "LayerNormalization"
    return stretch


def _bias(node: onnx_ir.Node) -> onnx_ir.Node | None:
    """The addition of a constant bias to a product of (batch, length, width) with a constant matrix."""
    if (node.domain, node.op_type) != ("", "MatMul") or not _wide(node.inputs[0]) or _constant(node.inputs[1]) != 2:
        return None
    product = node.outputs[0]
    readers = [reader for reader, _ in product.uses()]
    if len(readers) != 1 or product.is_graph_output() or (readers[0].domain, readers[0].op_type) != ("", "Add"):
        return None
    added = next((value for value in readers[0].inputs if value is not product), None)
    result = readers[0].outputs[0]  # products behind operations that ONNX has no rules for have no shape, this has
    if _constant(added) != 1 or not _wide(result) or _sizes(added) != _sizes(result)[-1:]:
        return None
    return readers[0] if _leading(node.inputs[0]) == _leading(result) else None


def _row_by_row(node: onnx_ir.Node, stretch: _Stretch) -> bool:
    """Whether a node reads what a stretch gives and computes each row from that row alone."""
    if node.domain or len(node.outputs) != 1 or not any(value and stretch.gives(value) for value in node.inputs):
        return False
    result = _sizes(node.outputs[0])
    if node.op_type == "LayerNormalization":
        axis = node.attributes.get("axis")
        last = axis is None or axis.as_int() == -1
        return last and _sizes(node.inputs[0]) == result and all(_constant(value) == 1 for value in node.inputs[1:])
    if node.op_type not in _UNARY | _BINARY:
        return False
    return all((_wide(value) and _sizes(value) == result) or _constant(value) in (0, 1) for value in node.inputs)


def _wide(value: onnx_ir.Value | None) -> TypeGuard[onnx_ir.Value]:
    """Whether a value is (batch, length, width) with a known width, in fp32, and no constant."""
    return (
        value is not None
        and value.const_value is None
        and value.dtype == onnx_ir.DataType.FLOAT
        and value.shape is not None
        and len(value.shape) == 3
        and isinstance(value.shape[-1], int)
    )


def _constant(value: onnx_ir.Value | None) -> int | None:
    """How many axes a constant of fp32 has; None for what is none."""
    if value is None or value.const_value is None or value.dtype != onnx_ir.DataType.FLOAT:
        return None
    return len(value.const_value.shape)


def _sizes(value: onnx_ir.Value | None) -> list[str]:
    return [] if value is None or value.shape is None else [str(size) for size in value.shape]


class _Rewriting:
    """One graph as it is rewritten: the matrices of its values, and where shapes to go back to can be read."""

    def __init__(self, graph: onnx_ir.Graph):
        self.graph = graph
        self.matrices: dict[onnx_ir.Value, onnx_ir.Value] = {}
        self.entered: dict[tuple[str, ...], onnx_ir.Value] = {}
        self.shapes: dict[tuple[str, ...], onnx_ir.Value] = {}

    def apply(self, stretch: _Stretch) -> None:
        leaving = set(stretch.leaving)
        for node in stretch.moved:
            for value in node.inputs:
                if _wide(value) and value not in self.matrices:
                    self._enter(value, node)
            last = stretch.layers.get(node, node)
            result = last.outputs[0]
            inputs = [value if value is None else self.matrices.get(value, value) for value in node.inputs]
            if last is node:
                made = onnx_ir.node(node.op_type, inputs, attributes=node.attributes, name=node.name)
            else:
                bias = next(value for value in last.inputs if value is not node.outputs[0])
                made = onnx_ir.node("Gemm", [*inputs, bias], name=node.name)
            made.metadata_props.update(last.metadata_props)
            self.matrices[result] = self._add(made, last, result.name, (None, _width(result)), result.type)
            if result in leaving:
                self._leave(result, last)
        for node in reversed(stretch.moved):
            self.graph.remove([stretch.layers[node], node] if node in stretch.layers else node, safe=True)

    def _enter(self, value: onnx_ir.Value, before: onnx_ir.Node) -> None:
        width = _width(value)
        rows = _integers(self.graph, f"rows_of_{width}", [-1, width])
        reshape = onnx_ir.node("Reshape", [value, rows], name=f"{value.name}_to_rows")
        self.matrices[value] = self._add(reshape, before, f"{value.name}_rows", (None, width), value.type)
        self.entered.setdefault(_leading(value), value)

    def _leave(self, value: onnx_ir.Value, before: onnx_ir.Node) -> None:
        """Give those outside of the stretch the value as it was; if it is an output, under its name."""
        matrix = self.matrices[value]
        reshape = onnx_ir.node("Reshape", [matrix, self._shape(value, before)], name=f"{value.name}_from_rows")
        whole = self._add(reshape, before, f"{value.name}_whole", value.shape or (), value.type)
        self.matrices[whole] = matrix
        if value.is_graph_output():
            whole.name, matrix.name = value.name, f"{value.name}_rows"
        value.replace_all_uses_with(whole, replace_graph_outputs=True)

    def _shape(self, value: onnx_ir.Value, before: onnx_ir.Node) -> onnx_ir.Value:
        """(batch, length, whatever the width is) as a tensor, made once for all values of one batch and length."""
        key = _leading(value)
        if key not in self.shapes:
            integers = onnx_ir.TensorType(onnx_ir.DataType.INT64)
            source = self.entered[key]
            sizes = onnx_ir.node("Shape", [source], attributes={"start": 0, "end": 2}, name=f"{source.name}_sizes")
            first = self._add(sizes, before, sizes.name, (2,), integers)
            rest = _integers(self.graph, "whatever_is_left", [-1])
            joined = onnx_ir.node("Concat", [first, rest], attributes={"axis": 0}, name=f"{source.name}_shape")
            self.shapes[key] = self._add(joined, before, joined.name, (3,), integers)
        return self.shapes[key]

    def _add(
        self,
        node: onnx_ir.Node,
        before: onnx_ir.Node,
        name: str | None,
        shape: Iterable[int | onnx_ir.SymbolicDim | None],
        kind: onnx_ir.TypeProtocol | None,
    ) -> onnx_ir.Value:
        """Put a node into the graph; gives its output."""
        self.graph.insert_before(before, node)
        output = node.outputs[0]
        output.name, output.shape, output.type = name, onnx_ir.Shape(shape), kind
        return output


def _leading(value: onnx_ir.Value | None) -> tuple[str, ...]:
    return tuple(_sizes(value)[:2])


def _width(value: onnx_ir.Value) -> int:
    assert value.shape is not None
    width = value.shape[-1]
    assert isinstance(width, int)
    return width


def _integers(graph: onnx_ir.Graph, name: str, numbers: list[int]) -> onnx_ir.Value:
    if name not in graph.initializers:
        tensor = onnx_ir.tensor(numbers, dtype=onnx_ir.DataType.INT64, name=name)
        shape, kind = onnx_ir.Shape([len(numbers)]), onnx_ir.TensorType(tensor.dtype)
        graph.register_initializer(onnx_ir.Value(name=name, shape=shape, type=kind, const_value=tensor))
    return graph.initializers[name]
