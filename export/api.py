"""What Python callers use: `export_checkpoint` and `export_module`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..quantize.scheme import PRESETS, Plan
from ..runtime.errors import RequestError
from ..runtime.manifest import Dim
from .build import Result, build
from .compress import Request
from .image_input import image_input as read_image_input
from .memory import check_memory
from .module_subject import module_subject
from .source import open_source
from .staging import check_destination
from .subject import checkpoint_subject
from .targets import TARGETS, Options
from .work import Progress, timed

# What `--quantize` takes without a plan, and the arithmetic of what is not quantized.
PRECISIONS = {"none": "fp32", "fp16": "fp16"}
QUANTIZATIONS = (*PRECISIONS, *PRESETS, "auto")


def export_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    task: str | None = None,
    to: Sequence[str] = tuple(TARGETS),
    quantize: str = "none",
    max_length: int | None = None,
    lengths: Sequence[int] | None = None,
    dynamic: bool = True,
    keep_fp32: Sequence[str] = (),
    half_io: bool = False,
    image_input: bool = False,
    fallback: bool = True,
    min_agreement: float | None = None,
    metric: str = "cosine",
    data: str | Path | None = None,
    calibration: str | Path | None = None,
    plan: str | Path | Plan | None = None,
    prefer: str = "size",
    keep_best: bool = False,
    activations: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    force: bool = False,
    processes: int = 1,
    progress: Progress | None = None,
) -> Result:
    """Export a Hugging Face folder or hub id to a verified bundle.

    Args:
        source: a folder with config.json, safetensors and tokenizer, or a hub id.
        destination: the bundle to make.
        task: a Hugging Face pipeline name; None infers it from the checkpoint.
        to: targets, of `onnx`, `coreml`, `executorch`.
        quantize: `none` (fp32), `fp16`, `int8`, `int4`, or `auto`: the smallest plan that keeps `min_agreement`.
        max_length: longest input in tokens, special ones included.
        lengths: the only sequence lengths that artifacts shall take (one: fixed).
        dynamic: False makes every axis constant.
        keep_fp32: paths of modules whose arithmetic stays fp32 in fp16 artifacts.
        half_io: fp16 inputs and outputs for fp16 ONNX artifacts too (others keep fp32 ones).
        image_input: Core ML artifacts take pixels, and rescale and normalise them.
        fallback: where fp16 would fail parity, keep more modules in fp32, and where int8 or int4 would, give weights
            more bits, as few as will do (a search; see the notes).
        min_agreement: what each quantized artifact must keep, 0..1; None: 0.995 for int8, 0.98 for int4, 0.99 for auto.
        metric: of the agreement: `cosine` (mean cosine of output rows), `top1` (equal decisions) or `accuracy` (share
            of the reference's score on `data`, a file of labelled examples).
        calibration: a file of texts like those of your users; None: palmtop's own, in 30 languages.
        plan: a quantization plan (see `palmtop.quantize.scheme.Plan`) or its file, in place of `quantize`.
        prefer: of plans that hold, the smallest (`size`) or the fastest (`speed`), for auto.
        activations: whether layers of int8, int4 and auto round their inputs to 8 bits: `none`, `dynamic` (each token
            by its own range) or `static` (by calibrated ranges; Core ML alone).
        keep_best: write the bundle that agrees best when none agrees enough.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run code that comes with the checkpoint.
        force: replace an existing bundle.
        processes: of more than one some are forks of this process, which one that runs threads of its own should not
            allow: they run the reference, and lower.
        progress: told of each stage.

    Raises:
        ParityError, RequestError, DamagedError, UnsupportedError: see `palmtop.runtime.errors`.
    """
    quantization = _quantization(
        quantize,
        plan,
        min_agreement=min_agreement,
        metric=metric,
        data=data,
        calibration=calibration,
        prefer=prefer,
        fallback=fallback,
        keep_best=keep_best,
        activations=activations,
    )
    options = _options(quantize if quantization is None else "none", lengths, max_length, dynamic, keep_fp32, half_io)
    check_destination(Path(destination), force)
    seconds: dict[str, float] = {}
    with timed(seconds, "load"):
        opened = open_source(source, task=task, revision=revision, trust_remote_code=trust_remote_code)
        check_memory(opened.weights(), _targets(to), options.precision, quantization is not None)
        subject = checkpoint_subject(opened, max_length, options.lengths)
        if image_input:
            pictures = read_image_input(subject.preprocess, subject.inputs)
            options = dataclasses.replace(options, image_inputs=pictures)
    return build(
        subject,
        destination,
        targets=_targets(to),
        options=options,
        fallback=fallback,
        quantization=quantization,
        force=force,
        processes=processes,
        progress=progress,
        seconds=seconds,
    )


def export_module(
    module: torch.nn.Module,
    example_inputs: Mapping[str, torch.Tensor],
    destination: str | Path,
    *,
    name: str | None = None,
    dynamic_axes: Mapping[str, Mapping[int, Dim | str]] | None = None,
    output_names: Sequence[str] | None = None,
    verify_inputs: Sequence[Mapping[str, torch.Tensor]] | None = None,
    to: Sequence[str] = tuple(TARGETS),
    quantize: str = "none",
    keep_fp32: Sequence[str] = (),
    half_io: bool = False,
    fallback: bool = True,
    min_agreement: float | None = None,
    metric: str = "cosine",
    plan: str | Path | Plan | None = None,
    prefer: str = "size",
    keep_best: bool = False,
    activations: str | None = None,
    license: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Export any `torch.nn.Module` to a verified bundle.

    Args:
        module: put in eval mode, its gradients switched off.
        example_inputs: input name -> tensor, passed by keyword where `forward` has such parameters, else by position.
        name: what the bundle calls the model; None: the class name.
        dynamic_axes: input name -> axis -> its symbol (`"batch"`) or a `Dim` with a range. An axis named
            `batch` becomes constant 1 where a target takes one row at a time. Unnamed axes are constant.
        output_names: names of the output tensors, in order.
        verify_inputs: realistic inputs to verify on; None: variations of the example.
        keep_fp32, half_io, fallback: as in `export_checkpoint`.

    Raises:
        ParityError, RequestError, UnsupportedError: see `palmtop.runtime.errors`.
    """
    quantization = _quantization(
        quantize,
        plan,
        min_agreement=min_agreement,
        metric=metric,
        prefer=prefer,
        fallback=fallback,
        keep_best=keep_best,
        activations=activations,
    )
    options = _options(quantize if quantization is None else "none", None, None, True, keep_fp32, half_io)
    check_destination(Path(destination), force)
    subject = module_subject(
        module,
        example_inputs,
        name=name or type(module).__name__,
        dynamic_axes=dynamic_axes,
        output_names=output_names,
        verify_inputs=verify_inputs,
        license=license,
    )
    return build(
        subject,
        destination,
        targets=_targets(to),
        options=options,
        fallback=fallback,
        quantization=quantization,
        force=force,
        progress=progress,
    )


def _targets(to: Sequence[str]) -> list[str]:
    unknown = [name for name in to if name not in TARGETS]
    if unknown or not to:
        raise RequestError(f"Unknown target {', '.join(unknown) or '(none)'}. Known targets: {', '.join(TARGETS)}.")
    return list(dict.fromkeys(to))


def _quantization(quantize: str, plan: str | Path | Plan | None, **asked: Any) -> Request | None:
    """What is asked of quantization; None where there is none. `asked`: other fields of `Request`."""
    if plan is not None and quantize not in ("none", "plan"):
        raise RequestError(f"A plan takes the place of --quantize {quantize}: give one of the two.")
    kind = "plan" if plan is not None else quantize
    if kind == "bf16":
        raise RequestError(
            "No target computes in bf16, and weights stored in it take the bytes of fp16 ones for eight times their "
            "error. The nearest: --quantize fp16."
        )
    if kind not in (*QUANTIZATIONS, "plan"):
        raise RequestError(f"Unknown quantization '{quantize}'. Known: {', '.join(QUANTIZATIONS)}.")
    if kind in PRECISIONS:
        defaults = {field.name: field.default for field in dataclasses.fields(Request)}
        if any(value != defaults[name] for name, value in asked.items() if name != "fallback"):
            raise RequestError(f"--quantize {kind} is held to parity itself; agreement is for int8, int4 and auto.")
        return None
    files = {name: Path(asked[name]) for name in ("data", "calibration") if asked.get(name) is not None}
    read = plan if isinstance(plan, Plan) or plan is None else Plan.read(plan)
    return Request(kind=kind, plan=read, **{**asked, **files})


def _options(
    quantize: str,
    lengths: Sequence[int] | None,
    max_length: int | None,
    dynamic: bool,
    keep_fp32: Sequence[str],
    half_io: bool,
) -> Options:
    if lengths and max_length:
        raise RequestError("--lengths and --max-length exclude each other: the largest length is the maximum.")
    if any(length < 1 for length in [*(lengths or []), *([max_length] if max_length is not None else [])]):
        raise RequestError("Lengths are counted in tokens, from 1 on.")
    if keep_fp32 and quantize == "none":
        raise RequestError("--keep-fp32 is for --quantize fp16; without it everything is fp32.")
    if half_io and quantize != "fp16":
        raise RequestError("--fp16-io is for --quantize fp16; inputs and outputs of all else are fp32.")
    return Options(
        precision=PRECISIONS[quantize],
        lengths=tuple(sorted(set(lengths))) if lengths else None,
        dynamic=dynamic,
        keep_fp32=tuple(keep_fp32),
        half_io=half_io,
    )
