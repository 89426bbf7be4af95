"""`palmtop verify --explain`: layer by layer, where each artifact parts ways with its reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...runtime.backends import get_backend
from ...runtime.bundle import Bundle
from ...runtime.errors import PalmtopError, RequestError
from ...runtime.explain import OUTPUT, Explanation, Layer
from ...runtime.manifest import Artifact
from ...runtime.parity import bound_for
from ...runtime.reports import ArtifactReport, Report
from ...runtime.session import Session
from ...runtime.verify import Case, recorded_noise, worst_row
from .console import Console

# Explains one artifact, opened, on one case.
Explain = Callable[[Session, Case], Explanation]

REMEDY = "Give the checkpoint with --reference SOURCE."


def alone(bundle: Bundle, targets: Sequence[str] | None) -> list[Artifact]:
    """The artifacts that can be explained without the model: those that are executed here without rounding as well.

    Raises:
        RequestError: one that was asked for cannot be, or none can.
    """
    chosen = [bundle.artifact(name) for name in targets or bundle.manifest.targets]
    able = [entry for entry in chosen if get_backend(entry.target).rounding is not None and entry.precision != "fp32"]
    unable = [entry.target for entry in chosen if entry not in able]
    if unable and (targets or not able):
        raise RequestError(
            f"--explain compares {', '.join(unable)} with the eager model, layer by layer. {REMEDY} "
            "(Without it, only fp16 Core ML can be explained, against its own fp32 arithmetic.)"
        )
    return able


def explain_alone(bundle: Bundle) -> Explain:
    """Compare a half-precision artifact with its own run without rounding: no torch, no checkpoint."""
    noise = recorded_noise(bundle)

    def explain(session: Session, case: Case) -> Explanation:
        artifact = session.artifact
        backend = get_backend(artifact.target)
        rounding = backend.rounding
        assert rounding is not None  # as `alone` chose
        assert session.path is not None
        bounds = [bound_for(artifact.precision, noise[spec.name]) for spec in artifact.outputs if spec.name in noise]
        feeds = {spec.name: case.feeds[spec.name].astype(spec.dtype) for spec in artifact.inputs}
        layers, first = rounding(session.path, artifact, feeds, max(bounds, key=lambda bound: bound.max_error))
        return Explanation(
            artifact.target,
            artifact.path,
            case.name,
            "its own arithmetic in fp32",
            "the same file executed with and without rounding by "
            f"{backend.inner_engine or session.engine}; not compared with the model itself",
            layers,
            first,
        )

    return explain


def explain_report(
    bundle: Bundle,
    report: Report,
    cases: Sequence[Case],
    explain: Explain,
    advance: Callable[[], None],
    only: Sequence[str] | None = None,
) -> list[Explanation | tuple[str, str]]:
    """Explanations of the artifacts that were executed, each on its worst case; or path and error where one fails."""
    found: list[Explanation | tuple[str, str]] = []
    for entry in report.artifacts:
        if entry.status == "not executed" or (only is not None and entry.target not in only):
            continue
        try:
            session = bundle.open_session(entry.target, threads=1)
            case = worst_row(session, _worst(entry, cases), bundle.manifest.tokenizer)
            found.append(explain(session, case))
        except PalmtopError as error:  # the report stands without it
            found.append((entry.path, str(error)))
        advance()
    return found


def _worst(entry: ArtifactReport, cases: Sequence[Case]) -> Case:
    name = entry.worst.worst_case if entry.worst is not None else ""
    fitting = [case for case in cases if case.name not in entry.skipped]
    if not fitting:
        raise RequestError(f"No case fits {entry.path}.")
    return next((case for case in fitting if case.name == name), fitting[0])


def explanations_json(found: Sequence[Explanation | tuple[str, str]]) -> list[dict[str, Any]]:
    """Plain values: each explanation, or the path of an artifact and why it has none."""
    return [
        entry.to_json() if isinstance(entry, Explanation) else {"path": entry[0], "error": entry[1]} for entry in found
    ]


def show_explanations(console: Console, found: Sequence[Explanation | tuple[str, str]]) -> None:
    """A table for each artifact, and under it where it parts ways with its reference."""
    for entry in found:
        if not isinstance(entry, Explanation):
            console.say()
            console.error(f"{entry[0]} cannot be explained: {entry[1]}")
            continue
        console.say()
        console.say(f"{entry.path} against {entry.against}, on '{entry.case}' ({entry.how}).")
        console.say()
        console.table(
            ("module", "operation", "error", "expected", "cosine", ""),
            [_row(layer, entry) for layer in _distinct(entry.layers)],
            right=("error", "expected", "cosine"),
        )
        if entry.unmatched:
            without = ", ".join(entry.unmatched)
            console.say(f"Without a value of their own in this artifact (merged, unused, or constant): {without}.")
        (console.error if entry.first is not None else console.say)(entry.verdict())


def _distinct(layers: Sequence[Layer]) -> list[Layer]:
    """One row an operation: a module whose result is that of its last part says nothing new."""
    rows: dict[tuple[str, bool], Layer] = {}
    for layer in layers:
        rows.setdefault((layer.operation, layer.kind == OUTPUT), layer)
    return list(rows.values())


def _row(layer: Layer, entry: Explanation) -> tuple[str, ...]:
    measure = layer.measure
    worse_rms = measure.bound is not None and measure.rms_error > measure.bound.rms_error
    by_rms = worse_rms and measure.bound is not None and measure.max_error <= measure.bound.max_error
    error = measure.rms_error if by_rms else measure.max_error
    allowed = "" if measure.bound is None else measure.bound.rms_error if by_rms else measure.bound.max_error
    module = layer.module or "(the model itself)"
    module = f"output {module}" if layer.kind == OUTPUT else module
    return (
        f"{module} ({layer.note})" if layer.note else module,
        layer.operation if layer.type in (OUTPUT, layer.operation) else f"{layer.operation}: {layer.type}",
        "NaN or inf" if measure.nonfinite else f"{error:.1e}{' rms' if by_rms else ''}",
        f"{allowed:.1e}" if isinstance(allowed, float) else "",
        f"{measure.cosine:.7f}",
        "parts here" if layer is entry.first else "beyond" if layer.exceeds else "",
    )
