"""fp16 in XNNPACK: casts that stay inside a delegate, and GELU, which XNNPACK has in fp32 only.

XNNPACK converts between fp32 and fp16 itself, but executorch's partitioner hands casts to the portable kernels, and an
fp16 model keeps its norms in fp32: every one would end a delegate. Casts are written here as operations of our own
that only ever exist inside delegates, where they become XNNPACK's `Convert`; the file needs nothing of ours to run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from executorch.backends.xnnpack.operators import node_visitor
from executorch.backends.xnnpack.partition.config.generic_node_configs import GenericNodePartitionerConfig
from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import XNNConvert, XNode
from torch.fx import Node

aten = torch.ops.aten

_LIBRARY = torch.library.Library("palmtop", "DEF")
_LIBRARY.define("to_half(Tensor value) -> Tensor")
_LIBRARY.define("to_float(Tensor value) -> Tensor")
_LIBRARY.impl("to_half", lambda value: value.to(torch.float16, copy=True), "CompositeExplicitAutograd")
_LIBRARY.impl("to_float", lambda value: value.to(torch.float32, copy=True), "CompositeExplicitAutograd")

to_half = torch.ops.palmtop.to_half.default
to_float = torch.ops.palmtop.to_float.default

# x * Phi(x) as x * sigmoid(x * (c0 + c1 x^2 + c2 x^4)): at most 2.6e-5 off GELU, a twentieth of fp16's own rounding.
# Found by least squares over |x| < 5.5, reweighted towards the largest error; beyond, the sigmoid is 0 or 1 in fp16.
GELU_COEFFICIENTS = (1.59501577, 7.40112947e-2, -7.03033972e-4)
GELU_RANGE = 5.5


class _CastConfig(GenericNodePartitionerConfig):
    def supported_precision_types(self) -> list[ConfigPrecisionType]:
        return [ConfigPrecisionType.FP32]


class ToHalfConfig(_CastConfig):
    """Lets the partitioner take `palmtop::to_half`."""

    target_name = "to_half.default"


class ToFloatConfig(_CastConfig):
    """Lets the partitioner take `palmtop::to_float`."""

    target_name = "to_float.default"


class _CastVisitor(node_visitor.NodeVisitor):
    def define_node(self, node: Node, xnn_graph: Any, vals_to_ids: dict[Node, int], debug_handle: int) -> None:
        self.define_nodes_tensor_inputs_outputs(node, xnn_graph, vals_to_ids)
        convert = XNNConvert(input_id=vals_to_ids[node.args[0]], output_id=vals_to_ids[node], flags=0)
        xnn_graph.xnodes.append(XNode(xnode_union=convert, debug_handle=debug_handle))


@contextlib.contextmanager
def cast_visitors() -> Iterator[None]:
    """Let the serialiser of delegates write the casts, inside the block."""
    visitors, names = node_visitor._node_visitor_dict, ("palmtop.to_half.default", "palmtop.to_float.default")
    visitors.update(dict.fromkeys(names, _CastVisitor))
    try:
        yield
    finally:
        for name in names:
            del visitors[name]
