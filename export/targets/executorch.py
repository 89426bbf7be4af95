"""ExecuTorch: one `.pte` for iOS and Android, whose delegates run on XNNPACK.

The file needs of an app what the standard packages link: the runtime, the XNNPACK backend and the optimized kernels;
with integer weights also the quantized kernels, a library of their own on iOS.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...runtime.errors import PalmtopError, RequestError, UnsupportedError
from ...runtime.manifest import Artifact, Dim
from ..capture import Captured
from ..generation.states import can_keep, into_states, state_specs, without_caches
from ..modules import module_path
from . import Options, Target, UnsupportedOperation, file_stem
from .executorch_import import import_executorch

if importlib.util.find_spec("executorch") is None:
    raise ImportError("No module named 'executorch'")

# ExecuTorch plans memory for the largest sizes. An axis without a bound gets this one.
_LARGEST_UNBOUNDED = 64
_PRECISIONS = ("fp32", "fp16")
_INTEGERS = ("int8", "int4", "mixed")
REMEDY = (
    "write it with operations that ExecuTorch's optimized kernels have, or leave this format out (--to onnx,coreml)"
)


def plan(captured: Captured, options: Options) -> Artifact:
    """Batch is 1; the sequence is dynamic up to its longest, or constant; every other axis gets a bound.

    Raises:
        RequestError: a precision that this target does not write.
    """
    if options.precision not in (*_PRECISIONS, *(_INTEGERS if captured.quantized else ())):
        raise RequestError(f"The executorch target writes {' and '.join(_PRECISIONS)}, not {options.precision}.")
    narrowed = captured.specialize(_axes(captured, options))
    keeps = can_keep(narrowed)
    inputs, outputs = without_caches(narrowed) if keeps else (narrowed.inputs, narrowed.outputs)
    kept = state_specs(narrowed, "float16" if options.precision == "fp16" else "float32") if keeps else ()
    return Artifact(
        target="executorch",
        path=f"executorch/{file_stem(captured)}.pte",
        precision=options.precision,
        inputs=inputs,
        outputs=outputs,
        states=kept,
        quantization=_quantization(narrowed, options),
        methods={captured.method: "forward"},
        minimum_os={"ios": "17.0", "macos": "12.0"},  # what ExecuTorch's Swift package asks for
    )


def _quantization(captured: Captured, options: Options) -> dict[str, list[str]] | None:
    """What the manifest says of weights that are not stored in the artifact's precision."""
    said: dict[str, list[str]] = {}
    if options.keep_fp32:
        said["keep_fp32"] = list(options.keep_fp32)
    if captured.quantized:
        with quiet():
            from .executorch_quantize import check, kept

        check(captured)
        if stay := kept(captured):
            said["kept"] = stay
    return said or None


def _axes(captured: Captured, options: Options) -> dict[str, Dim]:
    axes = {}
    for symbol, dim in captured.symbols.items():
        if symbol == "batch":
            axes[symbol] = Dim(size=1)
            continue
        lengths = options.lengths if symbol == "sequence" else None
        longest = max(lengths) if lengths else dim.largest
        if longest is None:
            longest = max(_LARGEST_UNBOUNDED, dim.min or 1)
        if captured.caches and not options.dynamic:
            axes[symbol] = Dim(symbol=symbol, values=(1,))  # what keeps a cache takes one token after the other
        elif not options.dynamic or (lengths and len(lengths) == 1 and not captured.caches):
            axes[symbol] = Dim(symbol=symbol, values=(longest,))
        elif dim.values is None:
            axes[symbol] = Dim(symbol=symbol, min=dim.min or 1, max=longest)
    return axes


def unsupported(captured: Captured, artifact: Artifact) -> Sequence[UnsupportedOperation]:
    """Every operation without a kernel in ExecuTorch's optimized kernels or in XNNPACK, in a second or two."""
    with quiet():
        from .executorch_preflight import missing_kernels

        return missing_kernels(specialized(captured, artifact).program)


def lower(captured: Captured, artifact: Artifact, identity: str, path: Path) -> None:
    """Write `model.pte`, with the identity as what its method `palmtop_identity` returns.

    Raises:
        UnsupportedError: executorch cannot lower an operation; names it, its module and the remedy.
    """
    captured = specialized(captured, artifact)
    with quiet():
        from .executorch_lowering import write_pte

        try:
            write_pte(captured, artifact, identity, path)
        except (PalmtopError, OSError, MemoryError):
            path.unlink(missing_ok=True)
            raise
        except Exception as error:  # executorch, its passes and its backends raise whatever they like
            path.unlink(missing_ok=True)
            raise _not_lowered(captured, error) from error


def specialized(captured: Captured, artifact: Artifact) -> Captured:
    """The captured program with the axes that the artifact's signature states, and its cache in the states."""
    planned = {spec.name: spec for spec in artifact.inputs}
    narrowed = captured.specialize(
        {
            dim.symbol: there
            for spec in captured.inputs
            if spec.name in planned
            for dim, there in zip(spec.dims, planned[spec.name].dims, strict=True)
            if dim.symbol is not None
        }
    )
    return into_states(narrowed) if artifact.states else narrowed


def _not_lowered(captured: Captured, error: Exception) -> UnsupportedError:
    text = str(error)
    named = sorted(set(re.findall(r"\baten(?:::|\.)_?[a-z][a-z0-9_]*", text)))
    lines = []
    for name in named:
        operation = name.replace("::", ".").removeprefix("aten.")
        places = sorted(
            {module_path(n) for n in captured.program.graph.nodes if f"aten.{operation}." in f"{n.target}."}
        )
        if places:
            where = ", ".join(place or "the model itself" for place in places[:3])
            lines.append(f"  aten.{operation}, in {where}")
    first = "\n  ".join([line for line in text.splitlines() if line.strip()][:4])
    found = "\n".join(lines[:8]) + "\n" if lines else ""
    return UnsupportedError(
        f"ExecuTorch cannot lower this model ({type(error).__name__}):\n  {first}\n{found}"
        f"Remedy: {REMEDY}; --debug shows the whole traceback."
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """executorch, torchao and torch's exporter log, warn and, when imported, set up logging for everybody."""
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_executorch()
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)


TARGET = Target(name="executorch", plan=plan, unsupported=unsupported, lower=lower)
