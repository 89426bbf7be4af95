"""ExecuTorch: one `.pte` for iOS and Android, whose delegates run on XNNPACK."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

from ...runtime.backends.executorch import IDENTITY_METHOD
from ...runtime.manifest import Artifact, Dim
from .. import hf
from ..capture import Captured
from ..precision import half_precision
from . import Options, Target, UnsupportedOperation
from .executorch_half import cast_visitors, to_float, to_half
from .executorch_partition import Partitioner
from .executorch_patches import quick
from .executorch_rewrites import plain_reshapes, rewrite

# ExecuTorch plans memory for the largest sizes. An axis without a bound gets this one.
_LARGEST_UNBOUNDED = 64


def plan(captured: Captured, options: Options) -> Artifact:
    """Batch is 1; the sequence is dynamic up to its longest, or constant; every other axis gets a bound."""
    narrowed = captured.specialize(_axes(captured, options))
    return Artifact(
        target="executorch",
        path="executorch/model.pte",
        precision=options.precision,
        inputs=narrowed.inputs,
        outputs=narrowed.outputs,
        quantization={"keep_fp32": list(options.keep_fp32)} if options.keep_fp32 else None,
    )


def _axes(captured: Captured, options: Options) -> dict[str, Dim]:
    axes = {}
    for symbol, dim in captured.symbols.items():
        longest = dim.largest if dim.largest is not None else max(_LARGEST_UNBOUNDED, dim.min or 1)
        if symbol == "sequence" and options.lengths:
            longest = max(options.lengths)
        if symbol == "batch":
            axes[symbol] = Dim(size=1)
        elif not options.dynamic or (symbol == "sequence" and options.lengths and len(options.lengths) == 1):
            axes[symbol] = Dim(size=longest)
        else:
            axes[symbol] = Dim(symbol=symbol, min=dim.min or 1, max=longest)
    return axes


def unsupported(captured: Captured, artifact: Artifact) -> Sequence[UnsupportedOperation]:
    """Every operation without a kernel in ExecuTorch's standard libraries."""
    return []


def lower(captured: Captured, artifact: Artifact, identity: str, path: Path) -> None:
    """Write `model.pte`."""
    captured = captured.specialize(_planned_axes(captured, artifact))
    program = captured.private_program()
    program._state_dict, program._constants = dict(program.state_dict), dict(program.constants)
    if artifact.precision == "fp16":
        half_precision(program, (artifact.quantization or {}).get("keep_fp32", ()), to_half=to_half, to_float=to_float)
    with hf.executorch_patches(program), quick(), cast_visitors(), torch.no_grad():
        rewrite(program)
        edge = to_edge_transform_and_lower(
            program,
            transform_passes=[plain_reshapes],
            partitioner=[Partitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
            constant_methods=_constants(artifact, identity),
        )
        manager = edge.to_executorch()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        manager.write_to_file(file)


def _planned_axes(captured: Captured, artifact: Artifact) -> dict[str, Dim]:
    planned = {spec.name: spec for spec in artifact.inputs}
    return {
        dim.symbol: there
        for spec in captured.inputs
        for dim, there in zip(spec.dims, planned[spec.name].dims, strict=True)
        if dim.symbol is not None
    }


def _constants(artifact: Artifact, identity: str) -> dict[str, object]:
    """What a phone asks of a `.pte` before it runs it, each a method without arguments."""
    constants: dict[str, object] = {IDENTITY_METHOD: identity}
    longest = [dim.largest for spec in artifact.inputs for dim in spec.dims if dim.symbol == "sequence"]
    if longest and longest[0] is not None:
        constants["get_max_seq_len"] = longest[0]
    return constants


TARGET = Target(name="executorch", plan=plan, unsupported=unsupported, lower=lower)
