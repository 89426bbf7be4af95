"""Core ML: ML Programs in an `.mlpackage`.

What was decided here, and why (docs/decisions.md has the measurements):

- The batch is always 1. An app classifies one text or image at a time; a second axis that varies keeps a model off the
  Neural Engine, and enumerated shapes would multiply. A session splits larger batches.
- Integers are int32 and floats fp32 at the boundary, in fp16 programs too: an fp16 output would save one cast in the
  model and cost every app its own, in a type that Swift lacks on Intel Macs.
- The oldest system is iOS 16, or iOS 18 for a model with attention (one fused operation in place of four or five, and
  no table of all pairs of tokens in memory) and for several enumerated inputs, which are new there. `lower` obeys the
  artifact: planned with an older system, attention is taken apart.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ...runtime.errors import PalmtopError, RequestError
from ...runtime.manifest import Artifact, Dim, TensorSpec
from ..capture import Captured
from ..generation.states import can_keep, state_specs, without_caches
from ..modules import module_path
from . import Options, Target, UnsupportedOperation, file_stem
from .coreml_compat import compatible, convertible
from .coreml_errors import explained, preflight
from .coreml_graph import lowered_graph, specialize
from .coreml_schemes import check_system, oldest_ios

if importlib.util.find_spec("coremltools") is None:  # imported when it is used: that takes seconds
    raise ImportError("No module named 'coremltools'")

_LONGEST = 2048  # where a model sets no bound: Core ML wants one for every axis
_DTYPES = {"int64": "int32", "bool": "int32", "float64": "float32", "float16": "float32", "bfloat16": "float32"}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# Words of the language that ML Programs are written in; coremltools would rename a tensor called so.
_RESERVED = frozenset(
    ["any", "bool", "program", "func", "tensor", "list", "dict", "tuple", "true", "false", "string", "state"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
    + ["bf16", "fp16", "fp32", "fp64"]
)
_MACOS = {"15": "12.0", "16": "13.0", "17": "14.0", "18": "15.0"}  # the macOS with the same operations


def plan(captured: Captured, options: Options) -> Artifact:
    """One row at a time, the sequence ranged, enumerated or fixed, on the oldest system with what the model needs.

    Raises:
        RequestError: a length that the model does not take, a name that Core ML does not, a module that is not there.
    """
    _check_names(captured)
    _check_kept(captured, options.keep_fp32)
    planned = {symbol: _planned(dim, captured, options) for symbol, dim in captured.symbols.items()}
    narrowed = captured.specialize(planned)  # as `lower` will have it: narrowing one axis can narrow another
    for symbol, dim in narrowed.symbols.items():
        if dim.values is not None and dim.values != planned[symbol].values:
            raise RequestError(f"--lengths: with one row at a time the model takes only {dim}.")
    # States are fp16, whatever is computed: what computes in fp32 takes its cache and gives it back.
    keeps = options.precision == "fp16" and can_keep(narrowed)
    given, results = without_caches(narrowed) if keeps else (narrowed.inputs, narrowed.outputs)
    inputs = tuple(map(_signature, given))
    ios = "18" if keeps else _oldest_ios(narrowed, inputs)
    quantization: dict = {"keep_fp32": sorted(options.keep_fp32)} if options.keep_fp32 else {}
    if narrowed.quantized:
        quantization["compute"] = "fp16"
    return Artifact(
        target="coreml",
        path=f"coreml/{file_stem(captured)}.mlpackage",
        precision=options.precision,
        quantization=quantization or None,
        inputs=inputs,
        outputs=tuple(map(_signature, results)),
        states=state_specs(narrowed, "float16") if keeps else (),
        minimum_os={"ios": f"{ios}.0", "macos": _MACOS[ios]},
        methods={captured.method: "main"},
        image_inputs={name: dict(image) for name, image in options.image_inputs.items()},
    )


def unsupported(captured: Captured, artifact: Artifact) -> Sequence[UnsupportedOperation]:
    """What coremltools cannot convert and decomposition does not help with."""
    with compatible():
        return preflight(lowered_graph(specialize(captured, artifact).program, convertible), convertible)


def for_system(artifact: Artifact, ios: str) -> Artifact:
    """A planned artifact for another oldest iOS (`"17"`); `lower` then does without what that system lacks.

    Raises:
        RequestError: a system that Core ML has no ML Programs for, or that lacks what the artifact needs.
    """
    if ios not in _MACOS:
        raise RequestError(f"Unknown iOS '{ios}' as the oldest system. Known: {', '.join(_MACOS)}.")
    enumerated = sum(any(dim.values is not None for dim in spec.dims) for spec in artifact.inputs)
    if ios != "18" and enumerated > 1:
        raise RequestError(f"Several enumerated inputs need iOS 18, not {ios}. Give one length, or a range.")
    return dataclasses.replace(artifact, minimum_os={"ios": f"{ios}.0", "macos": _MACOS[ios]})


def lower(
    captured: Captured, artifact: Artifact, identity: str, path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the `.mlpackage`.

    Args:
        metadata: further user-defined metadata to store in it.

    Raises:
        UnsupportedError: names the operation that stopped the conversion, its module, and the remedy.
    """
    with compatible():
        from .coreml_convert import convert
        from .coreml_package import MODULES_KEY, pack_modules, weights_folder, write_package

        check_system(captured.quantized, artifact.minimum_os["ios"].split(".")[0])
        program = lowered_graph(specialize(captured, artifact).program, convertible)
        try:
            converted = convert(program, artifact, weights_folder(path), captured.quantized)
        except (PalmtopError, OSError, MemoryError):
            raise
        except Exception as error:  # coremltools raises whatever Python raises
            raise explained(error, program) from error
        write_package(
            path, converted.spec, identity, {**(metadata or {}), MODULES_KEY: pack_modules(converted.modules)}
        )


def _planned(dim: Dim, captured: Captured, options: Options) -> Dim:
    if dim.symbol == "batch":
        return Dim(size=1)
    largest = dim.largest or max(_LONGEST, dim.min or 0)
    one = (1,) if captured.caches and options.lengths else ()  # a decoder goes on one token after the other
    lengths = tuple(sorted({*(options.lengths or ()), *one})) if dim.symbol == "sequence" else ()
    for length in lengths:
        if not dim.admits(length):
            raise RequestError(f"--lengths {length}: the model takes {dim}. Give lengths that it takes.")
    if not options.dynamic:
        if captured.caches:
            return Dim(size=1)
        return Dim(size=lengths[-1] if lengths else largest)
    if lengths:
        return Dim(size=lengths[0]) if len(lengths) == 1 else Dim(symbol=dim.symbol, values=lengths)
    if dim.values is not None:
        return dim
    return Dim(symbol=dim.symbol, min=max(dim.min or 1, 1), max=largest)


def _signature(spec: TensorSpec) -> TensorSpec:
    return dataclasses.replace(spec, dtype=_DTYPES.get(spec.dtype, spec.dtype))


def _check_names(captured: Captured) -> None:
    for spec in (*captured.inputs, *captured.outputs):
        if not _NAME.fullmatch(spec.name) or spec.name in _RESERVED:
            raise RequestError(
                f"'{spec.name}' cannot name a tensor in Core ML. Use letters, digits and underscores, a letter first, "
                f"and none of its own words (tensor, state, list, ...)."
            )
    shared = {spec.name for spec in captured.inputs} & {spec.name for spec in captured.outputs}
    if shared:
        raise RequestError(f"Core ML needs other names for outputs than for inputs; both have {', '.join(shared)}.")


def _check_kept(captured: Captured, keep_fp32: tuple[str, ...]) -> None:
    """Whether every module to keep in fp32 is one that something was computed in."""
    if not keep_fp32:
        return
    modules = {module_path(node) for node in captured.program.graph.nodes}
    for kept in keep_fp32:
        if not any(module == kept or module.startswith(f"{kept}.") for module in modules):
            close = difflib.get_close_matches(kept, modules, n=3, cutoff=0.3)
            raise RequestError(f"--keep-fp32 {kept}: the model has no such module. Close to it: {', '.join(close)}.")


def _oldest_ios(captured: Captured, inputs: tuple[TensorSpec, ...]) -> str:
    attention = torch.ops.aten.scaled_dot_product_attention.default
    enumerated = sum(any(dim.values is not None for dim in spec.dims) for spec in inputs)
    has_attention = any(node.target is attention for node in captured.program.graph.nodes)
    has_state = bool(captured.program.graph_signature.buffers_to_mutate)
    weights = oldest_ios(captured.quantized)
    return "18" if has_attention or has_state or enumerated > 1 else str(weights)


def calibrate(captured: Captured, artifact: Artifact, feeds: Iterable[Mapping[str, np.ndarray]]) -> Artifact:
    """The artifact with the ranges that static activations need (`coreml_calibrate.calibrated`)."""
    from .coreml_calibrate import calibrated

    return calibrated(captured, artifact, feeds)


TARGET = Target(name="coreml", plan=plan, unsupported=unsupported, lower=lower, calibrate=calibrate)
