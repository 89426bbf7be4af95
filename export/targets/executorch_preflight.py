"""Which operations ExecuTorch could not run, found before the long lowering starts."""

from __future__ import annotations

import functools
from typing import Any

import torch
from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.exir.tracer import _default_decomposition_table
from torch._C import DispatchKey
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..modules import module_path
from . import UnsupportedOperation
from .executorch import REMEDY

# What executorch turns into operations that have kernels, or takes out of the graph.
_REPLACED = {
    "aten::_unsafe_view": "aten::view_copy",
    "aten::alias": "aten::alias_copy",
    "aten::_assert_tensor_metadata": None,
    "aten::_assert_scalar": None,
    "aten::_assert_async": None,
    "aten::sym_constrain_range": None,
    "aten::sym_constrain_range_for_size": None,
    "aten::empty_permuted": "aten::empty",
    "aten::new_empty": "aten::empty",
    "aten::_prelu_kernel": "aten::where",
    "aten::mkldnn_rnn_layer": None,
    "aten::max_pool2d": "aten::max_pool2d_with_indices",
    "palmtop::write_at": "aten::index_put",
}


def missing_kernels(program: ExportedProgram) -> list[UnsupportedOperation]:
    """Every operation of a captured program that needs, itself or taken apart, a kernel that does not exist.

    Each kind of operation is run once on empty tensors, noting what PyTorch makes of it.
    """
    missing: dict[tuple[str, str], UnsupportedOperation] = {}
    without: dict[Any, list[str]] = {}
    for node in program.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target not in without:
            without[node.target] = [name for name in _parts(node) if not _has_kernel(name)]
        if without[node.target]:
            module = module_path(node)
            name = str(node.target)
            inner = [part for part in without[node.target] if part.replace("::", ".") not in name]
            said = f"{name} (by way of {', '.join(inner)})" if inner else name
            missing[name, module] = UnsupportedOperation(said, module, REMEDY)
    return list(missing.values())


@functools.cache
def runtime_kernels() -> frozenset[str]:
    """The kernels of the runtime that comes with executorch (`aten::add.out`), those of its packages for phones: the
    optimized ones, and the quantized ones that only artifacts with integer weights call.
    """
    from executorch.extension.pybindings import _portable_lib
    from executorch.kernels import quantized  # noqa: F401 - registers its kernels

    return frozenset(_portable_lib._get_operator_names())


@functools.cache
def _kernel_names() -> frozenset[str]:
    delegated = {f"aten::{str(config.target_name).partition('.')[0]}" for config in ALL_PARTITIONER_CONFIGS}
    return frozenset({name.partition(".")[0] for name in runtime_kernels()} | delegated)


def _has_kernel(name: str) -> bool:
    name = _REPLACED.get(name, name)  # type: ignore[assignment]
    if name is None or name.startswith("aten::sym_"):
        return True
    return name in _kernel_names() or f"{name}_copy" in _kernel_names()


class _Recorder(TorchDispatchMode):
    """Notes the operations that are run, those with a decomposition taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        decomposition = _decompositions().get(func)
        if decomposition is None and func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd):
            decomposition = func.decompose
        if decomposition is not None and not _has_kernel(func._schema.name):
            with self:
                result = decomposition(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        self.found.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@functools.cache
def _decompositions() -> dict[Any, Any]:
    return dict(_default_decomposition_table().items())


def _parts(node: torch.fx.Node) -> set[str]:
    """The operations that a call consists of; itself, when it cannot be run on empty tensors."""
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda argument: argument.meta["val"])
    recorder = _Recorder()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            args, kwargs = pytree.tree_map(_concrete, (args, kwargs))
            with enable_python_dispatcher(), recorder:
                node.target(*args, **kwargs)
    except Exception:  # an operation without a fake implementation, or one that depends on its data
        return {node.target._schema.name}
    return recorder.found or {node.target._schema.name}


def _concrete(value: Any) -> Any:
    """A stand-in of known size. (The captured program's own symbols must not learn anything from this.)"""
    if isinstance(value, torch.Tensor):
        sizes = [_concrete(size) for size in value.shape]
        return torch.empty(sizes, dtype=value.dtype)
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value.node.hint
    return value
