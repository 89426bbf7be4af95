"""torch.onnx without work that changes nothing: its table of operations is made once in a process, and a program is
traced again only where it holds an operation that must be taken apart, and run only where operands must be converted.
What is written computes the same, bit for bit.

Written against torch 2.13, which `pyproject.toml` pins.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from onnxscript import TracedOnnxFunction
from torch._export.utils import _collect_all_valid_cia_ops
from torch.onnx._internal.exporter import _constants, _decomp, _fx_passes, _registration
from torch.onnx._internal.fx import type_utils
from torch.onnx._internal.fx.passes import type_promotion

aten = torch.ops.aten
# Tracing again would only name these otherwise (`view`, `expand`); torchlib makes the same of both names.
_SAME_WHOLE = frozenset({aten.reshape.default, aten.expand_as.default})


@functools.cache
def torchlib(opset: int = _constants.TORCHLIB_OPSET) -> _registration.ONNXRegistry:
    """All operations that torchlib translates; not to be changed (`_copied`).

    onnxscript reads and parses the source of each to say in which domain it is, which nobody asks.
    """
    parsed = TracedOnnxFunction.function_ir
    TracedOnnxFunction.function_ir = _UNPARSED
    try:
        return _made(opset)
    finally:
        TracedOnnxFunction.function_ir = parsed


_made = _registration.ONNXRegistry.from_torchlib
_UNPARSED = SimpleNamespace(domain="")


def _copied(opset_version: int = _constants.TORCHLIB_OPSET) -> _registration.ONNXRegistry:
    """A registry to add translations to."""
    whole = torchlib(opset_version)
    registry = _registration.ONNXRegistry()
    registry._opset_version = opset_version
    registry.functions = {name: list(entries) for name, entries in whole.functions.items()}
    return registry


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Inside the block torch.onnx leaves out what would change nothing."""
    decompose, promote = _fx_passes.decompose_with_registry, _fx_passes.insert_type_promotion_nodes
    _registration.ONNXRegistry.from_torchlib = staticmethod(_copied)
    _fx_passes.decompose_with_registry = functools.partial(_decomposed, decompose)
    _fx_passes.insert_type_promotion_nodes = functools.partial(_promoted, promote)
    try:
        yield
    finally:
        _registration.ONNXRegistry.from_torchlib = _made
        _fx_passes.decompose_with_registry = decompose
        _fx_passes.insert_type_promotion_nodes = promote


def _decomposed(
    decompose: Callable[..., torch.export.ExportedProgram],
    program: torch.export.ExportedProgram,
    registry: _registration.ONNXRegistry,
) -> torch.export.ExportedProgram:
    """The program in operations of the registry: itself, if it is but for casts and sizes read twice,
    which are changed in place."""
    table = _decomp.create_onnx_friendly_decomposition_table(set(_decomp.get_onnx_implemented_overloads(registry)))
    if not all(_stays(node, table, registry) for node in program.graph.nodes):
        return decompose(program, registry)
    sizes: dict[str, torch.fx.Node] = {}
    for node in program.graph.nodes:
        if node.target is aten.to.dtype:
            source, dtype, *_ = node.args
            node.target, node.args, node.kwargs = aten._to_copy.default, (source,), {"dtype": dtype}
        elif node.target is aten.sym_size.int:
            node.replace_all_uses_with(sizes.setdefault(str(node.meta["val"]), node))
    program.graph.eliminate_dead_code()  # sizes that nothing reads
    results = program.graph.output_node().args[0]
    for spec, result in zip(program.graph_signature.output_specs, results, strict=True):
        if isinstance(result, torch.fx.Node):
            spec.arg.name = result.name  # a rewritten last operation has another name
    return program


def _stays(node: torch.fx.Node, table: Mapping[Any, Any], registry: _registration.ONNXRegistry) -> bool:
    """Whether torchlib translates a node as it is, to what it makes of the node traced again."""
    operation = node.target
    if node.op != "call_function":
        return node.op != "get_attr"  # a graph within the graph
    if not isinstance(operation, torch._ops.OperatorBase):
        return True  # arithmetic of sizes
    if not isinstance(operation, torch._ops.OpOverload) or operation in table or operation._schema.is_mutable:
        return False
    if operation is aten.to.dtype:
        return len(node.args) >= 2 and not node.kwargs and isinstance(node.args[1], torch.dtype)
    if not registry.is_registered(operation):
        return False
    composed = operation.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return not composed or operation in _SAME_WHOLE or operation in _kept_whole()


@functools.cache
def _kept_whole() -> frozenset[Any]:
    """Operations made of others that torch.export leaves whole where it is not told to take them apart."""
    return frozenset(_collect_all_valid_cia_ops())


def _promoted(promote: Callable[[torch.fx.GraphModule], None], module: torch.fx.GraphModule) -> None:
    """Make PyTorch's conversions of operands explicit, in place: which runs every operation to know what each gives,
    though the graph says it, and seldom finds an operand to be converted."""
    table = type_promotion.TypePromotionTable()
    if any(
        _converts(node, table)
        for each in module.modules()
        if isinstance(each, torch.fx.GraphModule)
        for node in each.graph.nodes
    ):
        promote(module)


def _converts(node: torch.fx.Node, table: type_promotion.TypePromotionTable) -> bool:
    """Whether PyTorch computes an operation with its operands in other dtypes than theirs."""
    rule = type_promotion.get_type_promotion_rule(node, table) if node.op == "call_function" else None
    if rule is None:
        return False
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda operand: operand.meta.get("val"))
    info = rule.preview_type_promotion(args, kwargs)
    return any(_other(value, info.args_dtypes.get(place)) for place, value in enumerate(args)) or any(
        _other(value, info.kwargs_dtypes.get(name)) for name, value in kwargs.items()
    )


def _other(value: Any, dtype: torch.dtype | None) -> bool:
    """Whether an operand is of another dtype than it is computed in; None: it is taken as it is."""
    if dtype is None:
        return False
    if isinstance(value, (tuple, list)):
        return any(_other(each, dtype) for each in value)
    if isinstance(value, torch.Tensor):
        return value.dtype != dtype
    return type_utils.from_scalar_type_to_torch_dtype(type(value)) != dtype
