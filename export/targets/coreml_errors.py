"""What coremltools cannot convert, said before a conversion starts, and what stopped one, said without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from ...runtime.errors import UnsupportedError
from ..modules import module_path, user_path
from . import UnsupportedOperation
from .coreml_graph import HANDLE, Convertible, inconvertible

_ELSEWHERE = "write that part of the module with other operations, or export the model without it (export_module)"
_EXPERTS = "in a mixture of experts, call model.set_experts_implementation('batched_mm') before the export"
_REMEDIES = {
    "as_strided": "use reshape, unfold or slicing, which say what they read",
    "rank <= 5": "Core ML's tensors have at most five dimensions: merge some with reshape, or loop over one",
    "histc": f"{_EXPERTS}; elsewhere count with comparisons and sums",
    "_grouped_mm": _EXPERTS,
    "native_group_norm": "make the batch constant (--static), as group normalisation needs to know it",
    "fft": "compute the spectrum before the model, or as a product with a constant matrix",
    "cumprod": "use exp(cumsum(log(x))) where x is positive",
    "unique": "its result has no fixed shape: compute it before the model",
    "multinomial": "sample after the model: return the probabilities",
}
# What coremltools translates for complex numbers too, as pairs of real ones.
_TAKE_COMPLEX = {
    *("fft_fft", "fft_fftn", "fft_ifft", "fft_ifftn", "fft_irfft", "fft_irfftn", "fft_rfft", "fft_rfftn", "stft"),
    *("complex", "real", "imag", "view_as_real", "abs", "add", "reshape", "view", "unsqueeze", "getitem"),
}
_COMPLEX = "keep real and imaginary parts as two tensors"
_LARGE = "Core ML's integers have 32 bits: compute with smaller ones, or before the model"
_INT32 = torch.iinfo(torch.int32)
# Ends of slices: "to the end" is written with the largest 64-bit integer, and understood.
_OPEN_ENDED = {torch.ops.aten.slice.Tensor, torch.ops.aten.slice_scatter.default}


def preflight(program: ExportedProgram, convertible: Convertible) -> list[UnsupportedOperation]:
    """Every operation of a prepared program that Core ML cannot take, each once for each module."""
    found: dict[tuple[str, str], UnsupportedOperation] = {}

    def report(operation: str, module: str, remedy: str) -> None:
        found.setdefault((operation, module), UnsupportedOperation(operation, module, remedy))

    for node in inconvertible(program, convertible):
        report(_operation(node), module_path(node), _remedy(node))
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if _is_complex(node) and _base(node) not in _TAKE_COMPLEX:
            report(f"{_operation(node)} on complex numbers", module_path(node), _COMPLEX)
        elif node.target not in _OPEN_ENDED and any(map(_beyond_int32, (*node.args, *node.kwargs.values()))):
            report(f"{_operation(node)} with a 64-bit integer", module_path(node), _LARGE)
    for name, value in (*program.constants.items(), *program.named_buffers()):
        if _is_large(value):
            report(f"constant {name}", user_path(name.rpartition(".")[0]), _LARGE)
    return list(found.values())


def explained(error: Exception, program: ExportedProgram) -> UnsupportedError:
    """An error from inside coremltools as one that names the operation, the module and the remedy."""
    node = _culprit(error, program)
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if node is None:
        return UnsupportedError(
            f"coremltools cannot convert this model to Core ML: {reason}\n"
            f"Remedy: {_ELSEWHERE}; --debug shows where in coremltools it stopped."
        )
    module = module_path(node) or "the model itself"
    return UnsupportedError(
        f"coremltools cannot convert {_operation(node)} in {module} to Core ML: {reason}\n"
        f"Remedy: {_remedy(node, reason)}."
    )


def _culprit(error: BaseException, program: ExportedProgram) -> Node | None:
    """The node that was being converted when coremltools gave up: the innermost call that has one at hand."""
    by_name = {node.name: node for node in program.graph.nodes}
    by_handle = {node.meta.get(HANDLE): node for node in program.graph.nodes}
    found: Node | None = None
    for frame in _frames(error):
        for local in ("node", "op", "self"):
            node = _node_of(frame.f_locals.get(local), by_name, by_handle)
            if node is not None:
                found = node
                break
    return found


def _node_of(value: Any, by_name: dict[str, Node], by_handle: dict[Any, Node]) -> Node | None:
    """The node behind a local variable: an fx node, coremltools' copy of one, or an operation made from one."""
    if isinstance(value, Node):
        return value
    kind = type(value).__name__
    if kind == "InternalTorchIRNode":
        return by_name.get(value.name)
    if hasattr(value, "op_type") and hasattr(value, "scopes"):
        from .coreml_convert import handle_of

        return by_handle.get(handle_of(value))
    return None


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _operation(node: Node) -> str:
    return str(node.target)


def _remedy(node: Node, reason: str = "") -> str:
    name = f"{node.target} {reason}"
    return next((remedy for part, remedy in _REMEDIES.items() if part in name), _ELSEWHERE)


def _base(node: Node) -> str:
    """The operation without namespace and overload: `aten.add.Tensor` is `add`."""
    return str(getattr(node.target, "_opname", None) or getattr(node.target, "__name__", node.target))


def _is_complex(node: Node) -> bool:
    values = [node.meta.get("val"), *(argument.meta.get("val") for argument in node.all_input_nodes)]
    return any(value.dtype.is_complex for value in _tensors(values))


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _beyond_int32(argument: Any) -> bool:
    return type(argument) is int and not _INT32.min <= argument <= _INT32.max


def _is_large(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.dtype != torch.int64 or not value.numel():
        return False
    return bool(value.min() < _INT32.min or value.max() > _INT32.max)
