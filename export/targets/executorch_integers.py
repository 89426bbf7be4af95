"""Linear layers on integers, as operations of our own that only ever exist inside XNNPACK delegates.

executorch recognises a quantized layer by a chain of six operations (choose the range, round, and back, for the
activation and for the weight). One operation says the same, keeps the integers and scales as they are, and leaves
nothing to recognise: the serialiser below writes it as XNNPACK's own `Convert` and `FullyConnected`, so that the file
needs nothing of ours to run. Layers that read one activation share its `Convert`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from executorch.backends.transforms import get_shape
from executorch.backends.xnnpack.operators import node_visitor
from executorch.backends.xnnpack.operators.quant_params import QuantParams
from executorch.backends.xnnpack.partition.config.generic_node_configs import GenericNodePartitionerConfig
from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import (
    PerTokenDynamicQuant,
    XNNConvert,
    XNNDatatype,
    XNNFullyConnected,
    XNNQuantizedTensorValue,
    XNNTensorValue,
    XNode,
    XValue,
)
from executorch.backends.xnnpack.utils.utils import get_param_tensor
from executorch.backends.xnnpack.utils.xnnpack_constants import XNN_INVALID_VALUE_ID
from torch.export import ExportedProgram
from torch.fx import Node


def _integer_linear(
    value: torch.Tensor,
    integers: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    bits: int,
    rounded: bool,
) -> torch.Tensor:
    blocks = integers.to(scales.dtype).unflatten(1, (scales.shape[1], -1))
    return torch.nn.functional.linear(value, (blocks * scales.unsqueeze(-1)).flatten(1), bias)


def _empty_result(value: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    return value.new_empty((*value.shape[:-1], weight.shape[0]))


_LIBRARY = torch.library.Library("palmtop", "FRAGMENT")
_LIBRARY.define(
    "integer_linear(Tensor value, Tensor integers, Tensor scales, Tensor? bias, int bits, bool rounded) -> Tensor"
)
_LIBRARY.impl("integer_linear", _integer_linear, "CompositeExplicitAutograd")
_LIBRARY.define("linear_of_table(Tensor value, Tensor weight) -> Tensor")
_LIBRARY.impl(
    "linear_of_table",
    lambda value, weight: torch.nn.functional.linear(value, weight),
    "CompositeExplicitAutograd",
)

for _name in ("integer_linear", "linear_of_table"):
    torch.library.register_fake(f"palmtop::{_name}", _empty_result, lib=_LIBRARY)

# integers: (rows, columns) int8, of `bits` 8 or 4. scales: (rows, blocks) fp32. rounded: whether each row of the input
# is rounded to 8 bits, by its own range, as it runs.
integer_linear = torch.ops.palmtop.integer_linear.default
# weight: (rows, columns) fp32, computed while the program runs.
linear_of_table = torch.ops.palmtop.linear_of_table.default


class _OwnConfig(GenericNodePartitionerConfig):
    def supported_precision_types(self) -> list[ConfigPrecisionType]:
        return [ConfigPrecisionType.FP32]

    def check_constraints(self, node: Node, ep: ExportedProgram) -> bool:
        return True


class IntegerLinearConfig(_OwnConfig):
    """Lets the partitioner take `integer_linear`; its constants follow it into the delegate."""

    target_name = "integer_linear.default"


class LinearOfTableConfig(_OwnConfig):
    """Lets the partitioner take `linear_of_table`."""

    target_name = "linear_of_table.default"


class _LinearVisitor(node_visitor.NodeVisitor):
    def _connect(
        self, node: Node, bias: Node | None, graph: Any, ids: dict[Any, int], handle: int, source: int, weight: int
    ) -> None:
        """Write a `FullyConnected` of two values, by their ids."""
        bias_id = XNN_INVALID_VALUE_ID
        if bias is not None:
            self.define_tensor(bias, graph, ids, force_fp32=True)
            bias_id = ids[bias]
        self.define_tensor(node, graph, ids)
        layer = XNNFullyConnected(input1_id=source, filter_id=weight, bias_id=bias_id, output_id=ids[node], flags=0)
        graph.xnodes.append(XNode(xnode_union=layer, debug_handle=handle))


class _IntegerLinearVisitor(_LinearVisitor):
    def define_node(self, node: Node, xnn_graph: Any, vals_to_ids: dict[Any, int], debug_handle: int) -> None:
        value, integers, scales, bias, bits, rounded = node.args
        self.define_tensor(value, xnn_graph, vals_to_ids)
        source = vals_to_ids[value]
        if rounded:
            source = _rounded(value, xnn_graph, vals_to_ids, debug_handle)
        self.define_tensor(integers, xnn_graph, vals_to_ids, quant_params=self._weight(integers, scales, bits))
        self._connect(node, bias, xnn_graph, vals_to_ids, debug_handle, source, vals_to_ids[integers])

    def _weight(self, integers: Node, scales: Node, bits: int) -> QuantParams:
        numbers = get_param_tensor(self.exported_program, scales)
        assert numbers is not None
        blocks = numbers.shape[1]
        numbers = numbers.detach().clone() if blocks > 1 else numbers.detach().reshape(-1).clone()
        return QuantParams(
            per_channel=True,
            q_input=integers,
            scale=numbers,
            zp=torch.zeros_like(numbers, dtype=torch.int64),
            axis=0,
            dtype=torch.int8,
            qmin=-8 if bits == 4 else -128,
            qmax=7 if bits == 4 else 127,
            is_output=False,
            is_input=False,
            group_size=integers.meta["val"].shape[1] // blocks if blocks > 1 else 0,
        )


def _rounded(value: Node, graph: Any, ids: dict[Any, int], handle: int) -> int:
    """The id of an activation rounded to 8 bits by row, made when it is first asked for."""
    key = ("rounded", value)
    if key not in ids:
        dims = get_shape(value)
        ids[key] = len(graph.xvalues)
        tensor = XNNTensorValue(
            datatype=XNNDatatype.xnn_datatype_qdint8,
            num_dims=len(dims),
            dims=dims,
            external_id=XNN_INVALID_VALUE_ID,
            constant_buffer_idx=0,
            flags=0,
            id_out=ids[key],
        )
        by_row = PerTokenDynamicQuant(num_nonbatch_dims=1)
        graph.xvalues.append(XValue(XNNQuantizedTensorValue(tensor_value=tensor, quant_params=by_row)))
        convert = XNNConvert(input_id=ids[value], output_id=ids[key], flags=0)
        graph.xnodes.append(XNode(xnode_union=convert, debug_handle=handle))
    return ids[key]


class _LinearOfTableVisitor(_LinearVisitor):
    def define_node(self, node: Node, xnn_graph: Any, vals_to_ids: dict[Any, int], debug_handle: int) -> None:
        value, weight = node.args
        for tensor in (value, weight):
            self.define_tensor(tensor, xnn_graph, vals_to_ids)
        self._connect(node, None, xnn_graph, vals_to_ids, debug_handle, vals_to_ids[value], vals_to_ids[weight])


_VISITORS = {
    "palmtop.integer_linear.default": _IntegerLinearVisitor,
    "palmtop.linear_of_table.default": _LinearOfTableVisitor,
}


@contextlib.contextmanager
def linear_visitors() -> Iterator[None]:
    """Let the serialiser of delegates write our layers, inside the block."""
    visitors = node_visitor._node_visitor_dict
    visitors.update(_VISITORS)
    try:
        yield
    finally:
        for name in _VISITORS:
            del visitors[name]
