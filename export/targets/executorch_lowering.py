"""From a captured program to the bytes of a `.pte`: rewrite, convert, delegate, serialise."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from executorch.exir import (
    EdgeCompileConfig,
    EdgeProgramManager,
    ExecutorchBackendConfig,
    to_edge_transform_and_lower,
)
from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.sym_util import eval_upper_bound
from torch.export import ExportedProgram

from ...runtime.backends.executorch import IDENTITY_METHOD
from ...runtime.backends.executorch_file import describe
from ...runtime.errors import UnsupportedError
from ...runtime.manifest import Artifact
from .. import hf
from ..capture import Captured
from ..precision import half_precision
from .executorch_half import cast_visitors, to_float, to_half
from .executorch_integers import linear_visitors
from .executorch_memory import uncopied
from .executorch_partition import Partitioner
from .executorch_patches import quick
from .executorch_preflight import runtime_kernels
from .executorch_quantize import store_integers
from .executorch_rewrites import rewrite
from .executorch_shapes import known_slices, plain_reshapes
from .executorch_shared import stored_once


def write_pte(captured: Captured, artifact: Artifact, identity: str, path: Path) -> None:
    """Lower a program whose axes are those of the artifact, and write the file.

    Raises:
        UnsupportedError: the file would call a kernel that apps do not have.
    """
    program = captured.private_program()
    program._state_dict, program._constants = _whole(program.state_dict), _whole(program.constants)
    with hf.executorch_patches(program), quick(), cast_visitors(), linear_visitors(), torch.no_grad():
        if captured.quantized:
            store_integers(program, captured.quantized)
        if artifact.precision == "fp16":
            keep = (artifact.quantization or {}).get("keep_fp32", ())
            half_precision(program, keep, to_half=to_half, to_float=to_float)
        rewrite(program, rounds=any(each.scheme.activations != "none" for each in captured.quantized.values()))
        with uncopied(program), stored_once(), _any_convolution():
            edge = to_edge_transform_and_lower(
                program,
                transform_passes=[known_slices, plain_reshapes],
                partitioner=[Partitioner()],
                # The checks trace the graph again after every pass; what they could find, the file's own check does.
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
                constant_methods=_constants(captured, artifact, identity),
            )
            _check_axes(edge.exported_program(), artifact)
            manager = edge.to_executorch(ExecutorchBackendConfig(run_reinplace_pass=_writes_in_place(edge)))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                manager.write_to_file(file)
    _check_kernels(path)


def _any_convolution() -> contextlib.AbstractContextManager[None]:
    """PyTorch chooses a library for each convolution that it traces, oneDNN's by how many numbers the input has, and
    then holds the program to inputs on the same side of that number.
    """
    return torch.backends.mkldnn.flags(enabled=False)


def _whole(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The weights, those that are a part of another's memory copied: XNNPACK's serialiser writes a tensor's memory
    from its start, whichever part of it the tensor is.
    """
    found = {}
    for name, value in tensors.items():
        if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() != value.numel() * value.element_size():
            copy = value.detach().clone(memory_format=torch.contiguous_format)
            value = torch.nn.Parameter(copy, requires_grad=False) if isinstance(value, torch.nn.Parameter) else copy
        found[name] = value
    return found


def _constants(captured: Captured, artifact: Artifact, identity: str) -> dict[str, object]:
    """What a phone asks of a `.pte` before it runs it, each a method without arguments.

    The names are those that ExecuTorch's own runners ask for (`extension/llm/runner/constants.h`).
    """
    constants: dict[str, object] = {IDENTITY_METHOD: identity}
    longest = {dim.largest for spec in artifact.inputs for dim in spec.dims if dim.symbol == "sequence"}
    if len(longest) == 1 and None not in longest:
        constants["get_max_seq_len"] = longest.pop()
    if artifact.states:
        logits = next(spec for spec in captured.outputs if spec.name == "logits")
        constants |= {
            "get_max_context_len": artifact.states[0].dims[2].constant,
            "get_vocab_size": logits.dims[-1].constant,
            "use_kv_cache": True,
            "use_sdpa_with_kv_cache": False,
            "enable_dynamic_shape": constants.get("get_max_seq_len", 1) != 1,
        }
    return constants | dict(captured.told)


def _writes_in_place(edge: EdgeProgramManager) -> bool:
    """Whether keys and values may be written where they are to stand, not into a copy of the whole cache.

    executorch 1.4.1 gives a changed view of memory written in place (a reshape of it, outside of delegates) an address
    of its own, where nothing is.
    """
    program = edge.exported_program()
    written = [node for node in program.graph.nodes if node.name in program.graph_signature.buffers_to_mutate]
    readers = {user for node in written for user in node.users if user.op != "output"}
    return bool(written) and all(user.target is executorch_call_delegate for user in readers)


def _check_axes(program: ExportedProgram, artifact: Artifact) -> None:
    """Taking an operation apart may have settled or bounded a size; executorch would go on without a word."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for name, spec in zip(program.graph_signature.user_inputs, artifact.inputs, strict=True):
        for axis, (size, dim) in enumerate(zip(values[name].shape, spec.dims, strict=True)):
            if isinstance(size, int) and not dim.is_constant:
                raise UnsupportedError(
                    f"Lowering to ExecuTorch fixes axis {axis} of '{spec.name}' ({dim}) to {size}.\n"
                    "Remedy: export with --static, or with --lengths and one length."
                )
            largest = size if isinstance(size, int) else eval_upper_bound(size)
            if dim.largest is not None and largest < dim.largest:
                raise UnsupportedError(
                    f"Lowering to ExecuTorch bounds axis {axis} of '{spec.name}' ({dim}) by {largest}.\n"
                    "Remedy: export with --static, or leave this format out (--to onnx,coreml)."
                )


def _check_kernels(path: Path) -> None:
    known = runtime_kernels()
    called = {name for method in describe(path)["methods"].values() for name in method["kernels"]}
    missing = sorted(name for name in called if name not in known)
    if missing:
        raise UnsupportedError(
            f"The lowered model calls {', '.join(missing)}, which ExecuTorch's optimized kernels do not have.\n"
            "Remedy: write it with other operations, or leave this format out (--to onnx,coreml)."
        )
