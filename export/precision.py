"""Half precision on the captured graph: weights and arithmetic in fp16, inputs and outputs as they were.

For targets whose own tools cannot do it. What fp16 cannot do well stays in fp32, with casts around it: operations that
add up many squares or powers (a norm of values near 300 already overflows), and modules that the caller names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.utils import _pytree as pytree

from .modules import module_path

aten = torch.ops.aten

_LARGEST = 65504.0

# What is computed in fp32 whatever surrounds it: sums of many terms, squares, and what is sensitive near zero.
FULL_PRECISION = {
    aten.layer_norm.default,
    aten.native_layer_norm.default,
    aten.rms_norm.default,
    aten.group_norm.default,
    aten.linalg_vector_norm.default,
    aten.pow.Tensor_Scalar,
    aten.rsqrt.default,
    aten.mean.dim,
    aten.mean.default,
    aten.sum.dim_IntList,
    aten.var.correction,
    aten.cumsum.default,
    aten.log_softmax.int,
}

# Angles are as exact as what they come from: position 500 times a frequency is, in fp16, a quarter of a radian off.
_ANGLES = {aten.cos.default, aten.sin.default}
_ON_THE_WAY = {
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.add.Tensor,
    aten.cat.default,
    aten.to.dtype,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.transpose.int,
    aten.expand.default,
    aten.slice.Tensor,
}

Cast = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class _Half:
    program: ExportedProgram
    keep: Sequence[str]
    to_half: Cast
    to_float: Cast
    casts: dict[tuple[Node, torch.dtype], Node] = field(default_factory=dict)
    exact: set[Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        for node in reversed(self.program.graph.nodes):
            on_the_way = node.target in _ON_THE_WAY or _is_outer_product(node)
            if node.target in _ANGLES or (on_the_way and any(user in self.exact for user in node.users)):
                self.exact.add(node)

    def dtype_of(self, node: Node) -> torch.dtype:
        path = module_path(node)
        kept = any(path == name or path.startswith(f"{name}.") for name in self.keep)
        return torch.float32 if kept or node.target in FULL_PRECISION or node in self.exact else torch.float16

    def cast(self, source: Any, dtype: torch.dtype, before: Node) -> Any:
        """The node in that dtype, cast once for all readers."""
        if not isinstance(source, Node) or not _is_float(source.meta.get("val")):
            return source
        if source.meta["val"].dtype == dtype:
            return source
        if (source, dtype) not in self.casts:
            graph = self.program.graph
            anchor = _first_call(graph) if source.op == "placeholder" else source.next
            with graph.inserting_before(anchor):
                node = graph.call_function(self.to_half if dtype == torch.float16 else self.to_float, (source,))
            if "nn_module_stack" in before.meta:
                node.meta["nn_module_stack"] = before.meta["nn_module_stack"]
            node.meta["val"] = _retyped(source.meta["val"], dtype)
            self.casts[source, dtype] = node
        return self.casts[source, dtype]


def half_precision(
    program: ExportedProgram,
    keep: Sequence[str] = (),
    *,
    to_half: Cast,
    to_float: Cast,
) -> None:
    """Convert a program in place. Its dictionaries of weights must be its own; the tensors in them are not changed.

    Args:
        keep: paths of PyTorch modules, as the user names them, that compute in fp32.
        to_half, to_float: operations that cast a tensor.
    """
    work = _Half(program, keep, to_half, to_float)
    graph = program.graph
    _convert_weights(work)
    for node in list(graph.nodes):
        if node.op != "call_function" or node.meta.get("val") is None:
            continue
        dtype = work.dtype_of(node)

        def change(argument: Any, dtype: torch.dtype = dtype, node: Node = node) -> Any:
            if argument is torch.float32:
                return dtype
            return work.cast(argument, dtype, node)

        leaves_only = {"is_leaf": lambda value: isinstance(value, Node)}
        node.args = pytree.tree_map(change, tuple(node.args), **leaves_only)
        node.kwargs = pytree.tree_map(change, dict(node.kwargs), **leaves_only)
        node.meta["val"] = _retyped(node.meta["val"], dtype)
    _restore_outputs(work)
    graph.eliminate_dead_code()
    graph.lint()
    program.graph_module.recompile()


def _convert_weights(work: _Half) -> None:
    """Parameters and constants that anything reads in fp16 are stored so, and so is state; numbers beyond its range
    become its ends.
    """
    program = work.program
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    mutated = set(program.graph_signature.buffers_to_mutate.values())
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs if spec.kind in kinds}
    for node in program.graph.nodes:
        spec = specs.get(node.name) if node.op == "placeholder" else None
        if spec is None or not _is_float(node.meta.get("val")):
            continue
        if spec.target not in mutated and all(work.dtype_of(user) == torch.float32 for user in node.users):
            continue
        store = program.state_dict if spec.target in program.state_dict else program.constants
        value = store[spec.target]
        half = value.detach().clamp(-_LARGEST, _LARGEST).half()
        is_parameter = spec.kind == InputKind.PARAMETER
        store[spec.target] = torch.nn.Parameter(half, requires_grad=False) if is_parameter else half
        node.meta["val"] = node.meta["val"].to(torch.float16)


def _restore_outputs(work: _Half) -> None:
    output = work.program.graph.output_node()
    results = []
    for spec, node in zip(work.program.graph_signature.output_specs, output.args[0], strict=True):
        is_state = spec.kind == OutputKind.BUFFER_MUTATION
        results.append(work.cast(node, torch.float16 if is_state else torch.float32, output))
    for spec, old, new in zip(
        work.program.graph_signature.output_specs,
        output.args[0],
        results,
        strict=True,
    ):
        if old is not new:
            spec.arg = type(spec.arg)(name=new.name)
    output.args = (tuple(results),)


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (torch.float32, torch.float16)


def _is_outer_product(node: Node) -> bool:
    """Positions times frequencies as a product of a column and a row."""
    if node.target not in (aten.matmul.default, aten.bmm.default):
        return False
    left = node.args[0]
    return isinstance(left, Node) and str(left.meta["val"].shape[-1]) == "1"


def _first_call(graph: torch.fx.Graph) -> Node:
    return next(node for node in graph.nodes if node.op != "placeholder")


def _retyped(value: Any, dtype: torch.dtype) -> Any:
    """Fake values with their floating-point tensors in another dtype. (Evaluating the call anew would let PyTorch's
    own choices, of an attention kernel say, pin sizes that vary.)
    """
    return pytree.tree_map(lambda leaf: leaf.to(dtype) if _is_float(leaf) else leaf, value)
