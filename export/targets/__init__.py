"""The formats an artifact can be in. Adding one is adding a module here, a line in `TARGETS`, and a backend in
`runtime/backends/` that executes it; `docs/adding-a-format.md` walks through it.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.errors import RequestError
from ...runtime.manifest import Artifact, Dim, TensorSpec

if TYPE_CHECKING:
    from ..capture import Captured


@dataclass(frozen=True)
class Options:
    """What the user asked of the artifacts.

    `lengths`: the sequence lengths an artifact must take, when enumerated (`--lengths 32,128`); one length: fixed.
    `dynamic`: False makes every axis constant, the sequence at its longest (`--static`).
    `keep_fp32`: paths of PyTorch modules whose arithmetic stays fp32 in an fp16 artifact.
    `half_io`: the inputs and outputs of an fp16 ONNX artifact are fp16 too; other formats keep theirs.
    `image_inputs`: inputs that Core ML shall take as pictures (`export/image_input.py`).
    """

    precision: str = "fp32"
    lengths: tuple[int, ...] | None = None
    dynamic: bool = True
    keep_fp32: tuple[str, ...] = ()
    half_io: bool = False
    image_inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class UnsupportedOperation:
    """An operation a target cannot take, the module it came from, and what to do about it."""

    operation: str
    module: str
    remedy: str


@dataclass(frozen=True)
class Target:
    """A format. These functions are all that the pipeline knows of it.

    `plan(captured, options)`: the manifest's entry for the artifact: path, dtypes, dims, precision, oldest system.
    `unsupported(captured, artifact)`: every operation that cannot be lowered, found before the long conversion starts.
    `lower(captured, artifact, identity, path)`: writes the artifact, with the manifest's identity inside.
    `calibrate(captured, artifact, feeds)`: the planned artifact with what `lower` must know of a plan's static
        activations, from example inputs; None when the target needs nothing.
    `cache`: how the cache of a model that generates is captured for it: `growing` with each call, or `static`, with
        room for the whole context from the start.
    """

    name: str
    plan: Callable[[Captured, Options], Artifact]
    unsupported: Callable[[Captured, Artifact], Sequence[UnsupportedOperation]]
    lower: Callable[[Captured, Artifact, str, Path], None]
    calibrate: Callable[[Captured, Artifact, Iterable[Mapping[str, np.ndarray]]], Artifact] | None = None
    cache: str = "static"


def file_stem(captured: Captured) -> str:
    """The name of an artifact's file: `model`, or that of the method when the model has several."""
    return "model" if captured.method == "forward" else captured.method


def requested_axes(captured: Captured, options: Options) -> dict[str, Dim]:
    """What the options make of the axes that vary: constants when static, the enumerated lengths for the sequence."""
    axes: dict[str, Dim] = {}
    for symbol, dim in captured.symbols.items():
        if symbol == "sequence" and options.lengths:
            axes[symbol] = Dim(symbol=symbol, values=options.lengths)
        elif not options.dynamic:
            axes[symbol] = (
                Dim(size=1) if symbol == "batch" else Dim(symbol=symbol, values=(dim.largest or dim.min or 1,))
            )
    return axes


def narrow(specs: Sequence[TensorSpec], axes: dict[str, Dim]) -> tuple[TensorSpec, ...]:
    """The specs with some axes replaced, by symbol."""
    return tuple(
        dataclasses.replace(spec, dims=tuple(axes.get(dim.symbol or "", dim) for dim in spec.dims)) for spec in specs
    )


def constant_axes(captured: Captured, artifact: Artifact) -> dict[str, Dim]:
    """The axes that vary in the capture and are constant in the artifact: what to specialise before lowering."""
    planned = {spec.name: spec for spec in artifact.inputs}
    return {
        dim.symbol: there
        for spec in captured.inputs
        for dim, there in zip(spec.dims, planned[spec.name].dims, strict=True)
        if dim.symbol is not None and there.is_constant
    }


@dataclass(frozen=True)
class Entry:
    """Where a target is and which packages make its artifacts (their versions stand in the manifest)."""

    module: str
    packages: tuple[str, ...]


# By target name. The module, here, has its `TARGET`; it is imported when asked for, with its format's library.
TARGETS = {
    "onnx": Entry("onnx", ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")),
    "coreml": Entry("coreml", ("torch", "transformers", "coremltools")),
    "executorch": Entry("executorch", ("torch", "transformers", "executorch")),
}


def get_target(name: str) -> Target:
    """The target of that name. Raises RequestError for an unknown name or a library that is not installed."""
    if name not in TARGETS:
        raise RequestError(f"Unknown target '{name}'. Known targets: {', '.join(TARGETS)}.")
    try:
        module = importlib.import_module(f".{TARGETS[name].module}", __name__)
    except ImportError as error:
        raise RequestError(
            f"Target '{name}' needs a package that is not installed ({error}). "
            "Install it with: pip install 'palmtop[export]'"
        ) from error
    return module.TARGET
