"""Core ML: ML Programs in an `.mlpackage`.

Decisions (measured; docs/decisions.md):

- The batch is always 1. Apps classify one text at a time, a second flexible axis keeps models off the Neural Engine,
  and a session splits larger batches.
- Integers are int32 and floats fp32 at the boundary, in fp16 programs too: an fp16 output saves one cast and costs
  every app a conversion, as Swift has no Float16 on Intel Macs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ...runtime.errors import RequestError
from ...runtime.manifest import Artifact, Dim, TensorSpec
from ..capture import Captured
from ..modules import module_path
from . import Options, Target, UnsupportedOperation
from .coreml_graph import inconvertible, lowered_graph, specialize

PATH = "coreml/model.mlpackage"
_LONGEST = 2048  # where a model sets no bound: Core ML wants one for every axis
_DTYPES = {"int64": "int32", "bool": "int32", "float64": "float32", "float16": "float32", "bfloat16": "float32"}
_MACOS = {"15": "12.0", "16": "13.0", "17": "14.0", "18": "15.0"}


def plan(captured: Captured, options: Options) -> Artifact:
    """One row at a time, the sequence ranged, enumerated or fixed, on the oldest system with what the model needs."""
    dims = {symbol: _planned(dim, options) for symbol, dim in captured.symbols.items()}
    ios = "18"
    return Artifact(
        target="coreml",
        path=PATH,
        precision=options.precision,
        quantization={"keep_fp32": list(options.keep_fp32)} if options.keep_fp32 else None,
        inputs=tuple(_signature(spec, dims) for spec in captured.inputs),
        outputs=tuple(_signature(spec, dims) for spec in captured.outputs),
        minimum_os={"ios": f"{ios}.0", "macos": _MACOS[ios]},
        methods={"forward": "main"},
    )


def unsupported(captured: Captured, artifact: Artifact) -> Sequence[UnsupportedOperation]:
    """What coremltools cannot convert and decomposition does not help with."""
    from .coreml_compat import compatible, convertible

    with compatible():
        program = lowered_graph(specialize(captured, artifact).program, convertible)
        return [
            UnsupportedOperation(str(node.target), module_path(node), "replace it in the model")
            for node in inconvertible(program, convertible)
        ]


def lower(captured: Captured, artifact: Artifact, identity: str, path: Path) -> None:
    """Write the `.mlpackage`. Raises UnsupportedError naming the operation and module that stopped it."""
    from .coreml_compat import compatible, convertible

    with compatible():
        from .coreml_convert import convert
        from .coreml_package import MODULES_KEY, pack_modules, weights_folder, write_package

        program = lowered_graph(specialize(captured, artifact).program, convertible)
        converted = convert(program, artifact, weights_folder(path))
        write_package(path, converted.spec, identity, {MODULES_KEY: pack_modules(converted.modules)})


def _planned(dim: Dim, options: Options) -> Dim:
    if dim.symbol == "batch":
        return Dim(size=1)
    largest = dim.largest or max(_LONGEST, dim.min or 0)
    if not options.dynamic:
        return Dim(size=max(options.lengths) if options.lengths and dim.symbol == "sequence" else largest)
    if dim.symbol == "sequence" and options.lengths:
        for length in options.lengths:
            if not dim.admits(length):
                raise RequestError(f"--lengths {length}: the model takes {dim}.")
        lengths = tuple(sorted(set(options.lengths)))
        return Dim(size=lengths[0]) if len(lengths) == 1 else Dim(symbol=dim.symbol, values=lengths)
    if dim.values is not None:
        return dim
    return Dim(symbol=dim.symbol, min=max(dim.min or 1, 1), max=largest)


def _signature(spec: TensorSpec, dims: dict[str, Dim]) -> TensorSpec:
    return dataclasses.replace(
        spec,
        dtype=_DTYPES.get(spec.dtype, spec.dtype),
        dims=tuple(dims.get(dim.symbol or "", dim) for dim in spec.dims),
    )


TARGET = Target(name="coreml", plan=plan, unsupported=unsupported, lower=lower)
