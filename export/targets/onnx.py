"""ONNX: one graph with named dynamic axes, for ONNX Runtime on iOS, Android, the web and servers."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from onnxscript import opset18 as op
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

from ...runtime.backends.onnx import IDENTITY_KEY
from ...runtime.errors import UnsupportedError
from ...runtime.manifest import Artifact, TensorSpec
from .. import hf
from ..capture import Captured
from ..graph import rename_outputs
from ..modules import module_path
from . import Options, Target, UnsupportedOperation, constant_axes, file_stem, narrow, onnx_fuse, requested_axes
from .onnx_aside import put_back_halved, weights_aside
from .onnx_contrib import into_the_standard
from .onnx_layers import layers_on_rows
from .onnx_quantize import TRANSLATIONS, state_types, store_integers
from .onnx_quick import quick, torchlib
from .onnx_write import write

aten = torch.ops.aten

# Larger models keep their weights in a file of their own. A protobuf file ends at 2 GiB, and whoever reads one has its
# weights in memory twice; those beside it are written one after the other, and mapped by ONNX Runtime.
_LARGEST_SINGLE_FILE = 1_000_000_000
# Where a weight begins in that file: at a page, so that it can be mapped by itself.
_ALIGNMENT = 4096
_MODULE_KEY = "palmtop.module"


def plan(captured: Captured, options: Options) -> Artifact:
    """Batch and every other captured axis stay dynamic; with lengths, the sequence takes those alone."""
    # What is filled of a cache differs from call to call, and a decoder takes one token as well as many.
    narrowed = {} if captured.caches else requested_axes(captured, options)
    half = options.half_io and options.precision == "fp16"
    return Artifact(
        target="onnx",
        path=f"onnx/{file_stem(captured)}.onnx",
        precision=options.precision,
        inputs=_halved(narrow(captured.inputs, narrowed), half),
        outputs=_halved(narrow(captured.outputs, narrowed), half),
        quantization={"keep_fp32": list(options.keep_fp32)} if options.keep_fp32 else None,
        methods={captured.method: "forward"},
    )


def _halved(specs: Sequence[TensorSpec], half: bool) -> tuple[TensorSpec, ...]:
    return tuple(
        dataclasses.replace(spec, dtype="float16") if half and spec.dtype == "float32" else spec for spec in specs
    )


def unsupported(captured: Captured, artifact: Artifact) -> list[UnsupportedOperation]:
    """Operations that neither torch.onnx, upstream's translations nor a decomposition covers."""
    registry = torchlib()
    decomposable = torch.export.default_decompositions()
    missing: dict[tuple[str, str], UnsupportedOperation] = {}
    for node in captured.program.graph.nodes:
        target = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        if registry.is_registered(target) or target in decomposable or target in hf.onnx_translations():
            continue
        if target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            continue
        module = module_path(node)
        missing[str(target), module] = UnsupportedOperation(
            str(target), module, "write it with standard PyTorch operations, or leave it out of this export"
        )
    return list(missing.values())


def lower(captured: Captured, artifact: Artifact, identity: str, path: Path) -> None:
    """Write `model.onnx` (and `model.onnx.data` beside it when the weights pass 1 GB)."""
    captured = captured.specialize(constant_axes(captured, artifact))
    fused = artifact.precision != "fp16"  # which ONNX Runtime's CPU computes in fp32 between casts anyway
    model = _translate(captured, fused)
    state_types(model)
    _name_axes(model, captured)
    _keep_module_paths_only(model)
    if fused:
        layers_on_rows(model)
        onnx_fuse.part_norms_from_sums(model)
    onnx_fuse.part_pools_from_padding(model)
    model.producer_name, model.producer_version = "palmtop", ""
    model.metadata_props[IDENTITY_KEY] = identity
    if artifact.precision == "fp16":
        kept_io = all(spec.dtype != "float16" for spec in (*artifact.inputs, *artifact.outputs))
        model = _to_fp16(model, (artifact.quantization or {}).get("keep_fp32", ()), kept_io)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if size > _LARGEST_SINGLE_FILE:
        onnx_ir.save(model, path, external_data=f"{path.name}.data", alignment=_ALIGNMENT)
    else:
        write(model, path)


def _translate(captured: Captured, fused: bool) -> onnx_ir.Model:
    program = captured.private_program()
    store_integers(program, captured)
    if fused:
        onnx_fuse.fuse_attention(program)
    rename_outputs(program)
    table = {**hf.onnx_translations(), **TRANSLATIONS, **onnx_fuse.TRANSLATIONS}
    table[aten.scaled_dot_product_attention.default] = _attention
    with hf.onnx_patches(program), quick(), _quiet():
        try:
            exported = torch.onnx.export(
                program,
                args=(),
                kwargs=dict(captured.example),
                input_names=[spec.name for spec in captured.inputs],
                output_names=[spec.name for spec in captured.outputs],
                custom_translation_table=table,
                verbose=False,
            )
        except Exception as error:
            raise UnsupportedError(
                f"torch.onnx cannot translate this model: {_last_cause(error)}\n"
                "Remedy: leave ONNX out (--to coreml,executorch), or rewrite the named operation; "
                "--debug shows the whole traceback."
            ) from error
    assert exported is not None
    hf.fix_onnx(exported)
    into_the_standard(exported.model)
    return exported.model


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Scaled dot-product attention in five operations, with no shape arithmetic.

    torchlib's own translation transposes the key through two reshapes and multiplies both query and key by the root of
    the scale. Causal and grouped-query attention are left to it.
    """
    rank = len(query.shape) if query.shape is not None else 0
    depth = query.shape[-1] if rank else None
    if is_causal or enable_gqa or rank != 4 or not isinstance(depth, int):
        return aten_scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scaled = op.Mul(query, op.Constant(value_float=scale if scale is not None else 1 / math.sqrt(depth)))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _name_axes(model: onnx_ir.Model, captured: Captured) -> None:
    """torch's `s18` becomes `batch`, everywhere it stands."""
    names: dict[str, str] = {}
    for value, spec in zip(model.graph.inputs, captured.inputs, strict=True):
        for size, dim in zip(value.shape or (), spec.dims, strict=True):
            if isinstance(size, onnx_ir.SymbolicDim) and size.value and dim.symbol:
                names[size.value] = dim.symbol
    values = [*model.graph.inputs, *(output for node in model.graph.all_nodes() for output in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        value.shape = onnx_ir.Shape(  # a new one: what onnxscript infers may be frozen
            _renamed(size.value, names) if isinstance(size, onnx_ir.SymbolicDim) and size.value else size
            for size in value.shape
        )


def _renamed(expression: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        expression = expression.replace(old, new)
    return expression


def _keep_module_paths_only(model: onnx_ir.Model) -> None:
    """Of torch.onnx's debug strings (stack traces with this machine's paths) keep the PyTorch module of each node."""
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        node.metadata_props.clear()
        node.doc_string = None
        path = hf.deepest_scope(scopes)
        if path:
            node.metadata_props[_MODULE_KEY] = path
        for output in node.outputs:
            output.metadata_props.clear()
            output.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.name = "palmtop"
    model.graph.doc_string = model.doc_string = None


def _to_fp16(model: onnx_ir.Model, keep_fp32: Sequence[str], keep_io: bool) -> onnx_ir.Model:
    """fp16 weights and arithmetic, inputs and outputs as they were or fp16 too (onnxruntime's own converter)."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    kept = [
        node.name
        for node in model.graph.all_nodes()
        if node.name and _within(node.metadata_props.get(_MODULE_KEY, ""), keep_fp32)
    ]
    metadata = dict(model.metadata_props)
    with warnings.catch_warnings(), weights_aside(model, kept) as aside:
        warnings.simplefilter("ignore")  # it tells of every constant that fp16 rounds to zero
        proto = convert_float_to_float16(
            onnx_ir.to_proto(model), keep_io_types=keep_io, disable_shape_infer=True, node_block_list=kept
        )
    _drop_repeated(proto.graph.node, lambda node: node.output[0])  # a cast for each of a value's readers
    _drop_repeated(proto.graph.value_info, lambda value: value.name)
    converted = onnx_ir.from_proto(proto)
    put_back_halved(converted, aside)
    converted.metadata_props.update(metadata)
    _join_kept(converted)
    return converted


def _drop_repeated(entries: Any, name_of: Callable[[Any], str]) -> None:
    """Leave the first of entries with one name."""
    seen: set[str] = set()
    for place in range(len(entries)):
        name = name_of(entries[place])
        if name in seen:
            entries[place].Clear()
        seen.add(name)
    kept = [entry for entry in entries if entry.ByteSize()]
    if len(kept) < len(entries):
        copies = [type(entry)() for entry in kept]
        for copy, entry in zip(copies, kept, strict=True):
            copy.CopyFrom(entry)
        del entries[:]
        entries.extend(copies)


def _join_kept(model: onnx_ir.Model) -> None:
    """Let what stays fp32 hand its values on in fp32: onnxruntime's converter casts to fp16 and back between any two of
    its nodes, which brings back the very overflow that they were kept for.
    """
    for node in list(model.graph):
        if node.op_type != "Cast" or node.attributes["to"].as_int() != onnx_ir.DataType.FLOAT:
            continue
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if source is None or source.op_type != "Cast" or source.attributes["to"].as_int() != onnx_ir.DataType.FLOAT16:
            continue
        if not node.outputs[0].is_graph_output() and source.inputs[0] is not None:
            node.outputs[0].replace_all_uses_with(source.inputs[0])
            model.graph.remove(node, safe=True)
            if not source.outputs[0].uses() and not source.outputs[0].is_graph_output():
                model.graph.remove(source, safe=True)


def _within(path: str, modules: Sequence[str]) -> bool:
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def _last_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: " + "\n  ".join(lines[:6])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx and onnxscript tell of their progress through logging, warnings and print."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


TARGET = Target(name="onnx", plan=plan, unsupported=unsupported, lower=lower, cache="growing")
