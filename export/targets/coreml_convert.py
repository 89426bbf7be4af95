"""The MIL side of Core ML: from a prepared program to a Core ML `Model` message and its weight file.

This drives coremltools one level below `ct.convert`: the same frontend, passes and backend, without validating the
whole program after each of its 110 passes, formatting it for a debug log nobody reads, and copying the weights twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil import converter as mil_converter
from coremltools.converters.mil.backend.mil.load import load as to_spec
from coremltools.converters.mil.frontend.torch.load import load as to_mil
from coremltools.converters.mil.mil import Block, Operation, Program
from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
from coremltools.converters.mil.mil.scope import ScopeSource
from torch.export import ExportedProgram

from ...quantize.weights import QuantizedWeight
from ...runtime.manifest import Artifact, Dim
from .coreml_graph import modules_by_handle
from .coreml_images import declare_images, fold_preparation
from .coreml_precision import fp32_operations
from .coreml_quantize import Weights, fp32_readers, round_inputs, skipped_passes, store_integers

_FP16_PASSES = {"common::add_fp16_cast", "common::add_int16_cast"}
_OPSETS = {"15": ct.target.iOS15, "16": ct.target.iOS16, "17": ct.target.iOS17, "18": ct.target.iOS18}


@dataclass(frozen=True)
class Converted:
    """A Core ML model, its weights on disk. `modules` maps each MIL value to the PyTorch module it came from."""

    spec: Any
    program: Program
    modules: dict[str, str]


def convert(
    program: ExportedProgram, artifact: Artifact, weights: Path, quantized: Mapping[str, QuantizedWeight] | None = None
) -> Converted:
    """Convert a program that `coreml_graph.lowered_graph` made.

    Args:
        artifact: as planned; its `quantization` may name modules that stay fp32 in an fp16 artifact (`keep_fp32`), have
            everything computed in fp32 (`compute`), and give the ranges of static activations (`input_ranges`).
        weights: folder that the weight file is written to.
        quantized: integers of the program's weights, by parameter.
    """
    options = artifact.quantization or {}
    integers = Weights(quantized or {})
    opset = _OPSETS[artifact.minimum_os["ios"].split(".")[0]]
    modules = modules_by_handle(program.graph)
    keep_fp32 = tuple(options.get("keep_fp32", ()))
    mil = to_mil(
        program,
        inputs=_input_types(artifact),
        outputs=[ct.TensorType(name=spec.name, dtype=np.dtype(spec.dtype).type) for spec in artifact.outputs],
        specification_version=opset.value,
        use_default_fp16_io=False,
        states=None,
    )
    _run_passes(
        mil,
        _passes(computes_half(artifact), skipped_passes(integers.quantized)),
        lambda: fp32_operations(mil, keep_fp32, _modules(mil, modules)) | fp32_readers(mil, integers),
    )
    fold_preparation(mil, artifact)
    stored = store_integers(mil, integers)
    round_inputs(mil, integers, stored, options.get("input_ranges", {}))
    mil.validate(check_essential_scope=True)
    mil._check_early_error_out_for_invalid_program()
    spec = to_spec(
        mil,
        str(weights),
        specification_version=opset.value,
        convert_from="pytorch",
        convert_to="mlprogram",
    )
    mil_converter._reset_conversion_state()
    _enumerate_shapes(spec, artifact)
    declare_images(spec, artifact)
    return Converted(spec, mil, _modules_of_values(mil, modules))


def _input_types(artifact: Artifact) -> list[ct.TensorType]:
    """Core ML's input types. An axis of one symbol is one `RangeDim`, so that shape inference knows the sizes agree."""
    ranges: dict[str | None, ct.RangeDim] = {}

    def size(dim: Dim) -> Any:
        if dim.is_constant:
            return dim.constant
        if dim.symbol not in ranges:
            low = min(dim.values) if dim.values is not None else max(dim.min or 1, 1)
            ranges[dim.symbol] = ct.RangeDim(low, dim.largest, default=_default_size(dim))
        return ranges[dim.symbol]

    return [
        ct.TensorType(name=spec.name, shape=[size(dim) for dim in spec.dims], dtype=np.dtype(spec.dtype).type)
        for spec in artifact.inputs
    ]


def _enumerate_shapes(spec: Any, artifact: Artifact) -> None:
    """Say which sizes an enumerated axis takes, in place of the range it was converted with.

    Converting with `ct.EnumeratedShapes` would give each input sizes of its own, which then are not known to agree.
    Core ML pairs the shapes of several inputs by their position in the list.
    """
    described = {feature.name: feature.type.multiArrayType for feature in spec.description.input}
    for tensor in artifact.inputs:
        varying = {dim for dim in tensor.dims if not dim.is_constant}
        values = next(iter(varying)).values if len(varying) == 1 else None
        if values is None:
            continue  # an input cannot mix ranges and lists; the range holds the list
        feature = described[tensor.name]
        feature.ClearField("ShapeFlexibility")
        for value in values:
            feature.enumeratedShapes.shapes.add().shape.extend(dim.constant or value for dim in tensor.dims)


def _default_size(dim: Dim) -> int:
    """The size that tools show for an axis that varies, and that Xcode's performance report runs: 128 if it may be."""
    largest = dim.largest
    assert largest is not None  # as planned
    return largest if dim.values is not None else min(max(dim.min or 1, 128), largest)


def computes_half(artifact: Artifact) -> bool:
    """Whether an artifact computes in fp16: those with integer weights do, unless told otherwise."""
    return artifact.precision != "fp32" and (artifact.quantization or {}).get("compute", "fp16") == "fp16"


def _passes(half: bool, skipped: set[str]) -> list[str]:
    main = PassPipeline()
    if not half:
        main.remove_passes(_FP16_PASSES)
    frontend, backend = mil_converter._construct_other_pipelines(main, "pytorch", "mlprogram")
    return [name for name in [*frontend.passes, *main.passes, *backend.passes] if name not in skipped]


def _run_passes(program: Program, passes: list[str], fp32: Callable[[], set[str]]) -> None:
    """Run passes in order; `fp32()` names the operations that the cast to fp16 shall leave alone."""
    for name in passes:
        graph_pass = PASS_REGISTRY[name]
        if name == "common::add_fp16_cast":
            kept = fp32()
            graph_pass.op_selector = lambda operation, kept=kept: operation.name not in kept
        graph_pass(program)


def handle_of(operation: Operation) -> int:
    """The stamp of the PyTorch node that an operation was made from, -1 when a pass made it from nothing."""
    handles = operation.scopes.get(ScopeSource.EXIR_DEBUG_HANDLE) or [None]
    return -1 if handles[0] is None else handles[0]


def _modules(program: Program, modules: dict[int, str]) -> dict[str, str]:
    """Name of each operation -> the module of the PyTorch node it was made from."""
    return {operation.name: modules[handle_of(operation)] for operation in _operations(program, modules)}


def _modules_of_values(program: Program, modules: dict[int, str]) -> dict[str, str]:
    return {
        output.name: modules[handle_of(operation)]
        for operation in _operations(program, modules)
        for output in operation.outputs
    }


def _operations(program: Program, modules: dict[int, str]) -> Iterator[Operation]:
    """All operations that came from a PyTorch node, constants excepted."""
    blocks: list[Block] = list(program.functions.values())
    while blocks:
        for operation in blocks.pop().operations:
            blocks.extend(operation.blocks)
            if operation.op_type != "const" and handle_of(operation) in modules:
                yield operation
