"""Making executorch's lowering quick: work that it repeats without effect is left out while a program is lowered.

Lowering is Python that traces the graph again and again: three decompositions, seventeen passes for each delegate.
Inside `quick()` a step runs only when something in the graph concerns it. Every entry says what it leaves out and
why the result is the same; a test lowers models with and without each and compares the files byte for byte.
Written for executorch 1.4.1 and torch 2.13.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from executorch.backends.xnnpack import _passes as xnnpack_passes
from executorch.backends.xnnpack._passes.channels_last_tagged_reshape_pass import ChannelsLastTaggedReshapePass
from executorch.exir import sym_util
from executorch.exir.dialects._ops import ops
from executorch.exir.passes import sym_shape_eval_pass
from executorch.exir.passes.legalize_portable_dim_order_pass import LegalizePortableDimOrderPass
from executorch.exir.passes.replace_aten_with_edge_pass import aten_to_edge, should_lower_to_edge
from executorch.exir.program import _program as lowering
from torch._export import utils as export_utils
from torch._higher_order_ops.auto_functionalize import auto_functionalized, auto_functionalized_v2
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram, _remove_auto_functionalized_pass, decomp_utils
from torch.fx.passes.infra.pass_base import PassResult
from torch.utils import _pytree as pytree

from .executorch_bounds import upper_bound

aten = torch.ops.aten

# The name in its package is that of the operation in it.
_delegates = importlib.import_module("torch._higher_order_ops.executorch_call_delegate")
_LARGEST_BOUND = 2**31


@contextlib.contextmanager
def quick(only: set[str] | None = None) -> Iterator[None]:
    """Install the patches (those named in `only`) and take them back at the end."""
    with contextlib.ExitStack() as stack:
        for name, (owner, attribute, replacement) in PATCHES.items():
            if only is None or name in only:
                original = getattr(owner, attribute)
                setattr(owner, attribute, replacement(original))
                stack.callback(setattr, owner, attribute, original)
        yield


# --- XNNPACK's passes -----------------------------------------------------------------------------------------------


def _has(*names: str) -> Callable[[set[str]], bool]:
    return lambda present: not present.isdisjoint(names)


def _has_all(*names: str) -> Callable[[set[str]], bool]:
    return lambda present: present.issuperset(names)


_NHWC = tuple(target.__name__ for target in ChannelsLastTaggedReshapePass.memory_sensitive_ops_nhwc)

# Pass -> whether a graph with these operations can be changed by it. A pass that is not here always runs.
_CONCERNS: dict[str, Callable[[set[str]], bool]] = {
    "XNNPACKRemoveCloneOpsTransform": _has("aten.clone.default", "dim_order_ops._clone_dim_order.default"),
    "DimOrderOpsRevertPass": lambda present: any(name.startswith("dim_order_ops.") for name in present),
    # It looks for interpolation taken apart into indexing, which no delegate takes.
    "ConvertToUpsampleBilinear2d": _has("aten.upsample_bilinear2d.vec", "aten.index.Tensor"),
    "ConvertToLinearPass": _has("aten.mm.default", "aten.addmm.default", "linear taken apart into bmm"),
    "PropagateCustomMetaPass": _has("quantized"),
    # Its pattern is attention as PyTorch takes it apart, both factors scaled by a number.
    "ConvertToSDPAPass": _has_all("aten.bmm.default", "aten._softmax.default", "aten.mul.Scalar"),
    "ConstPropPass": _has("no inputs"),
    "FuseBatchNormPass": lambda present: any("batch_norm" in name for name in present),
    "DecomposeBatchNorm": lambda present: any("batch_norm" in name for name in present),
    "FuseActivationPass": _has("aten.relu.default", "aten.hardtanh.default"),
    "DecomposeConcatenate": _has("aten.cat.default"),
    "RemoveGetItemPass": _has("aten.max_pool2d_with_indices.default", "aten.max.dim"),
    "InsertPadQDQPass": _has_all("aten.constant_pad_nd.default", "quantized"),
    "Conv1dUnsqueezePass": _has("aten.convolution.default"),
    "PReLUReshapePass": lambda present: any("prelu" in name for name in present),
    "ChannelsLastTaggedReshapePass": _has(*_NHWC, "aten._to_copy.default", "quantized"),
    "RemoveRedundantCopyPass": _has("aten._to_copy.default"),
}


def _features(graph: torch.fx.Graph) -> set[str]:
    """What the predicates above ask of a graph: the names of its operations, and three facts about them."""
    present = set()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        name = getattr(node.target, "__name__", str(node.target))
        present.add(name)
        if "quantize" in name or "qparams" in name:
            present.add("quantized")
        if not node.all_input_nodes:
            present.add("no inputs")
        if name == "aten.bmm.default" and "linear" in str(node.meta.get("source_fn_stack", "")):
            present.add("linear taken apart into bmm")
    return present


def _concerned_passes_only(original: Callable[..., Any]) -> Callable[..., Any]:
    """`XNNPACKPassManager.transform`: each pass that changes nothing still traces the graph again."""

    def transform(self: Any) -> ExportedProgram:
        every, program = self.passes, self._exported_program
        try:
            for step in every:
                concerns = _CONCERNS.get(step.__name__)
                if concerns is None or concerns(_features(program.graph)):
                    self.passes, self._exported_program = [step], program
                    program = original(self)
        finally:
            self.passes = every
        return program

    return transform


# --- the passes from ATen to the edge dialect, and from there to operators with an output argument -----------------

_SAME_DTYPE_OPERATORS = {
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.sub.Tensor,
    aten.div.Tensor,
    aten.div.Tensor_mode,
    aten.minimum.default,
}


def _calls(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    return (node for node in graph.nodes if node.op == "call_function")


def _given_to_tensors(node: torch.fx.Node) -> Iterator[Any]:
    """The arguments of a call that its schema declares as tensors."""
    if isinstance(node.target, torch._ops.OpOverload):
        for place, argument in enumerate(node.target._schema.arguments):
            if isinstance(argument.type, torch.TensorType):
                given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
                yield given.meta.get("val") if isinstance(given, torch.fx.Node) else given


def _dtypes(node: torch.fx.Node) -> set[object]:
    return {value.dtype if isinstance(value, torch.Tensor) else None for value in _given_to_tensors(node)}


# Pass -> whether it can change a graph. Each works on one call at a time, and leaves every other as it is.
_EDGE_CONCERNS: dict[str, Callable[[torch.fx.Graph], bool]] = {
    "NormalizeTransposePass": lambda graph: any(node.target is aten.t.default for node in _calls(graph)),
    "ReplaceBrokenOpsWithFunctionalOpsPass": lambda graph: any(
        getattr(node.target, "is_view", True) for node in _calls(graph) if node.target is not operator.getitem
    ),
    "ScalarToTensorPass": lambda graph: any(
        isinstance(value, (bool, int, float)) for node in _calls(graph) for value in _given_to_tensors(node)
    ),
    "SymToTensorPass": lambda graph: any(
        isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
        for node in _calls(graph)
        for value in _given_to_tensors(node)
    ),
    "RemoveMixedTypeOperators": lambda graph: any(
        len(_dtypes(node)) > 1 or (node.target in (aten.div.Tensor, aten.div.Tensor_mode) and _dtypes(node) != _FLOAT)
        for node in _calls(graph)
        if node.target in _SAME_DTYPE_OPERATORS
    ),
    "LegalizePortableDimOrderPass": lambda graph: any(
        node.target in LegalizePortableDimOrderPass._target_ops for node in _calls(graph)
    ),
}
_FLOAT: set[torch.dtype] = {torch.float32}


def _when_concerned(step: Any) -> Any:
    concerns = _EDGE_CONCERNS.get(getattr(step, "__name__", type(step).__name__))
    if concerns is None:
        return step

    def run(module: torch.fx.GraphModule) -> PassResult:
        return step(module) if concerns(module.graph) else PassResult(module, False)

    return run


def _concerned_edge_passes(original: Callable[..., Any]) -> Callable[..., Any]:
    """`_get_aten_to_edge_passes`: the passes that precede the change of dialect."""

    def passes(config: Any) -> tuple[list[Any], list[Any]]:
        before, after = original(config)
        return [_when_concerned(step) for step in before], list(after)

    return passes


def _made_when_concerned(original: Callable[..., Any]) -> Callable[..., Any]:
    """A pass that is made where it is used."""
    return lambda *args, **kwargs: _when_concerned(original(*args, **kwargs))


def _renamed_in_place(original: Callable[..., Any]) -> Callable[..., Any]:
    """`OpReplacePass`: it gives each call another target and traces the graph again to no other effect."""

    def make() -> Callable[[torch.fx.GraphModule], PassResult]:
        def run(module: torch.fx.GraphModule) -> PassResult:
            if any(isinstance(child, torch.fx.GraphModule) for child in module.children()):
                return original()(module)  # control flow
            for node in _calls(module.graph):
                if should_lower_to_edge(node.target):
                    node.target = aten_to_edge(node.target)
            module.recompile()
            return PassResult(module, True)

        return run

    return make


# --- decomposition --------------------------------------------------------------------------------------------------


def _decompose_when_needed(original: Callable[..., Any]) -> Callable[..., Any]:
    """`ExportedProgram.run_decompositions`: a graph with nothing to take apart is traced again in full."""

    def run_decompositions(self: ExportedProgram, decomp_table: Any = None, **options: Any) -> ExportedProgram:
        if decomp_table is not None and not options and not _decomposes(self, decomp_table):
            return self
        return original(self, decomp_table, **options)

    return run_decompositions


def _decomposes(program: ExportedProgram, table: Any) -> bool:
    """Whether anything in the program is taken apart by the table, or not functional yet.

    An empty table asks for functional operations alone; what the next table takes apart can wait for that one.
    """
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        return True
    for module in program.graph_module.modules():
        if module is not program.graph_module and isinstance(module, torch.fx.GraphModule):
            return True  # control flow
    for node in program.graph.nodes:
        target = node.target
        if node.op == "get_attr":
            return True
        if not isinstance(target, torch._ops.OpOverload):
            continue
        if target is torch.ops.aten.sym_size.int:
            continue  # every table has it, and gives it back
        if target._schema.is_mutable or target in table:
            return True
        if table and export_utils._is_cia_op(target) and not export_utils._is_preservable_cia_op(target):
            return True
    return False


# --- delegates, once they are made ----------------------------------------------------------------------------------


def _delegates_by_their_record(original: Callable[..., Any]) -> Callable[..., Any]:
    """`call_delegate_cpu`: passes that come after run all operations of a delegate to know the shapes that it gives;
    its own program says them, for inputs of the shapes that it was made with."""

    def call(lowered: Any, *args: Any) -> Any:
        recorded = _recorded(lowered.original_module, args)
        return original(lowered, *args) if recorded is None else recorded

    return call


def _recorded(program: ExportedProgram, args: tuple[Any, ...]) -> Any:
    """What a program gives for fake inputs like those that it was traced with; None where that is not recorded."""
    signature, spec = program.graph_signature, program.call_spec.out_spec
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [values.get(name) for name in signature.user_inputs]
    if len(inputs) != len(args) or not all(map(_alike, inputs, args)):
        return None
    results: list[Any] = [getattr(node, "meta", {}).get("val") for node in program.graph.output_node().args[0]]
    if len(results) != spec.num_leaves or not all(type(result) is FakeTensor for result in results):
        return None
    mode = next((arg.fake_mode for arg in args), results[0].fake_mode if results else None)
    if mode is None or any(result.fake_mode.shape_env is not mode.shape_env for result in results):
        return None
    with mode:
        made = [torch.empty_strided(result.shape, result.stride(), dtype=result.dtype) for result in results]
    return pytree.tree_unflatten(made, spec)


def _alike(one: Any, other: Any) -> bool:
    """Whether two fake tensors are of the same dtype, sizes and strides, whatever the sizes are."""
    return (
        type(one) is type(other) is FakeTensor
        and one.dtype == other.dtype
        and str(one.shape) == str(other.shape)
        and str(one.stride()) == str(other.stride())
    )


def _where_there_are_any(original: Callable[[torch.fx.Graph], None]) -> Callable[[torch.fx.Graph], None]:
    """`decompose_auto_functionalized` looks for two operations, with torch's compiler, which it imports."""

    def decompose(graph: torch.fx.Graph) -> None:
        if any(node.target in (auto_functionalized, auto_functionalized_v2) for node in graph.nodes):
            original(graph)

    return decompose


def _true_bound(upstream: Callable[[Any], int]) -> Callable[[Any], int]:
    """`eval_upper_bound`: transformers caps it near the traced size, against expressions whose bound explodes.

    Our axes have bounds of their own, and memory must be planned for all of them: only what cannot be bounded, or is
    beyond any tensor, is left to that cap.
    """

    def bound(size: Any) -> int:
        if isinstance(size, int):
            return size
        try:
            largest = upper_bound(size)
        except RuntimeError:
            return upstream(size)
        return largest if largest < _LARGEST_BOUND else upstream(size)

    return bound


def _softmax_too(upstream: set[Any]) -> set[Any]:
    """`memory_sensitive_ops_nchw`: XNNPACK's softmax is along what lies innermost in memory, and where pictures are
    worked on with channels last, that is the channels, not the last axis.
    """
    return upstream | {ops.edge.aten._softmax.default}


PATCHES: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "xnnpack passes": (xnnpack_passes.XNNPACKPassManager, "transform", _concerned_passes_only),
    "decompositions": (ExportedProgram, "run_decompositions", _decompose_when_needed),
    "bounds": (sym_util, "eval_upper_bound", _true_bound),
    "bounds of shapes": (sym_shape_eval_pass, "eval_upper_bound", _true_bound),
    "layouts": (ChannelsLastTaggedReshapePass, "memory_sensitive_ops_nchw", _softmax_too),
    "edge passes": (lowering, "_get_aten_to_edge_passes", _concerned_edge_passes),
    "dim orders": (lowering, "LegalizePortableDimOrderPass", _made_when_concerned),
    "dialect": (lowering, "OpReplacePass", _renamed_in_place),
    "delegates": (_delegates, "call_delegate_cpu", _delegates_by_their_record),
    "operations in place": (
        _remove_auto_functionalized_pass,
        "decompose_auto_functionalized",
        _where_there_are_any,
    ),
    # The list of all operations with an implicit decomposition, several thousand asked one by one, for each table.
    "implicit operations": (decomp_utils, "_collect_all_valid_cia_ops", functools.cache),
}
