"""From a subject to a bundle: capture, plan, lower, verify, pack; written aside, then renamed into place."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..runtime.bundle import CARD_NAME, GOLDEN_NAME, PARITY_NAME, PLAN_NAME, sha256_file
from ..runtime.errors import DamagedError, ParityError, RequestError, UnsupportedError
from ..runtime.golden import write_golden
from ..runtime.manifest import MANIFEST_NAME, Artifact, File, Manifest, TokenizerSpec, canonical_json
from ..runtime.parity import Noise
from ..runtime.reports import ArtifactReport, Report
from ..runtime.session import Session
from .aside import beside, worthwhile
from .capture import Captured
from .card import write_card
from .collector import often
from .compress import Request, compress
from .fallback import keep_more
from .held_out import held_out_cases, hold_back
from .judge import Judge
from .methods import capture_methods, capture_subject
from .quantization import Feeds
from .remembered import Cache
from .staging import staging
from .stamp import restamp
from .subject import GROWING, Subject
from .targets import TARGETS, Options, Target, get_target
from .work import LARGE, Known, Progress, Work, artifact_bytes, timed


@dataclass
class Result:
    """A finished export: the bundle, its manifest, what was measured, how long each stage took (seconds), and what a
    search for a plan tried."""

    path: Path
    manifest: Manifest
    report: Report
    notes: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)


def build(
    subject: Subject,
    destination: str | Path,
    *,
    targets: Sequence[str],
    options: Options,
    fallback: bool = True,
    quantization: Request | None = None,
    force: bool = False,
    processes: int = 1,
    progress: Progress | None = None,
    seconds: dict[str, float] | None = None,
) -> Result:
    """Make a bundle of a subject. With `fallback`, fp16 that fails parity gets as few modules in fp32 as will do.

    processes: how many may work at a time (see `aside.py`).

    Raises:
        UnsupportedError: operations that a target cannot take, all of them at once.
        ParityError: an artifact is not the model; nothing is left at the destination.
        RequestError: the destination exists (without `force`), or there is no room.
    """
    start = progress or (lambda what, steps: lambda: None)
    seconds = {} if seconds is None else seconds
    chosen = [get_target(name) for name in targets]
    calibration, held = _calibration(subject, quantization)
    size = _weight_bytes(subject.reference.model)
    if size >= LARGE:
        often()
    apart = worthwhile(processes, size)
    with staging(Path(destination), force) as root, beside(lambda: _prepared(subject, root), apart) as other:

        @functools.cache
        def reference() -> Known:
            advance = start("Running the reference", 1)
            known: Known = other.get()
            seconds["reference"] = known.seconds
            advance()
            return known

        tokenizer = None
        if not apart:
            tokenizer = other.get()
            reference()
        with timed(seconds, "capture"):
            ways = sorted({target.cache for target in chosen}) if subject.parts is not None else [GROWING]
            advance = start("Capturing the model", len(ways))
            captured_for: dict[str, list[Captured]] = {}
            for way in ways:
                captured_for[way] = capture_methods(subject, way)
                advance()
        jobs = [
            (target, captured)
            for target in chosen
            for captured in captured_for[target.cache if subject.parts is not None else GROWING]
        ]
        captures = [captured for _, captured in jobs]
        artifacts = [target.plan(captured, options) for target, captured in jobs]
        _refuse_unsupported(jobs, artifacts)
        if apart:
            tokenizer = other.get()
        base = Manifest(
            source=subject.info,
            task=subject.task,
            artifacts=tuple(artifacts),
            producer=producer(targets),
            tokenizer=tokenizer,
            preprocess=subject.preprocess,
            postprocess=subject.postprocess,
            generation=subject.generation,
        ).with_identity()

        @functools.cache
        def known() -> Known:
            found = reference()
            if held:
                found = dataclasses.replace(found, cases=held_out_cases(subject.reference, held, tokenizer))
            return found

        work = Work(root, base, {target.name: target for target in chosen}, known, start, seconds, processes)
        if quantization is not None:
            golden = known().golden
            judge = Judge(work, jobs, quantization, options, subject.reference, golden, calibration, bool(held))
            made = _quantized(subject, judge, captures[0], held)
        else:
            made = _executed(work, jobs, artifacts, options, retry=fallback and subject.parts is None)
        manifest = made.manifest
        report = Report("eager PyTorch, fp32, unpatched", made.reports)
        if quantization is None or not quantization.keep_best:
            _refuse_failures(report, made.told)
        write_golden(root / GOLDEN_NAME, known().golden)
        manifest = dataclasses.replace(manifest, parity=_summary(report, known()))
        (root / PARITY_NAME).write_text(
            canonical_json({**report.to_json(), "noise": _plain(known().noise)}), encoding="utf-8"
        )
        sizes = {artifact.path: artifact_bytes(root / artifact.path) for artifact in manifest.artifacts}
        (root / CARD_NAME).write_text(write_card(subject.card, manifest, report, sizes), encoding="utf-8")
        manifest = dataclasses.replace(manifest, files=list_files(root, manifest.artifacts))
        (root / MANIFEST_NAME).write_text(manifest.dumps(), encoding="utf-8")
    notes = (*subject.notes, *dict.fromkeys(note for captured in captures for note in captured.notes), *made.told)
    return Result(Path(destination), manifest, report, notes, seconds, made.trials)


def _prepared(subject: Subject, root: Path) -> Iterator[TokenizerSpec | Known | None]:
    """Write the tokenizer folder, and then run the reference: what needs no captured program."""
    yield subject.write_tokenizer(root) if subject.write_tokenizer is not None else None
    began = time.perf_counter()
    cases = subject.cases()
    noise = {name: _rounded(entry) for name, entry in subject.reference.noise(cases).items()}
    golden = subject.golden()
    yield Known(cases, noise, golden, round(time.perf_counter() - began, 2))


def _weight_bytes(model: torch.nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))


@dataclass(frozen=True)
class _Made:
    """Artifacts that stand in a bundle's folder: its manifest, what was measured, what to tell, what a search tried."""

    manifest: Manifest
    reports: list[ArtifactReport]
    told: tuple[str, ...] = ()
    trials: list[dict[str, Any]] = field(default_factory=list)


def _calibration(subject: Subject, asked: Request | None) -> tuple[list[Feeds], list[Feeds]]:
    """The inputs that quantization calibrates on, and those of the user's that are held back to judge by."""
    if asked is None:
        return [], []
    feeds = subject.calibration(asked.calibration)
    return (feeds, []) if asked.calibration is None else hold_back(feeds)


def _quantized(subject: Subject, judge: Judge, captured: Captured, held: Sequence[Feeds]) -> _Made:
    """Find the plan that was asked for and leave its artifacts and itself in the bundle's folder.

    captured: of a subject without parts, the model. Raises what `compress` does.
    """
    work, request = judge.work, judge.request
    base = work.manifest
    versions = [importlib.metadata.version(package) for package in ("palmtop", "torch")]
    searched = [request.kind, request.prefer, request.activations]
    model = [subject.info, versions, judge.calibration, searched]
    asked = [base.identity, base.producer, judge.options, request.bound, request.metric, request.data]
    asked += [held] if held else []
    whole = captured if subject.parts is None else capture_subject(subject)
    outcome = compress(whole, request, judge.calibration, judge.execute, work.start, Cache.of(model, asked))
    told = outcome.told
    if held:
        told = (*told, f"Judged on {len(held)} inputs of {request.calibration}, which calibration did not see.")
    (work.root / PLAN_NAME).write_text(outcome.plan.dumps(), encoding="utf-8")
    return _Made(work.manifest, outcome.attempt.reports, told, outcome.rows)


def _executed(
    work: Work, jobs: Sequence[tuple[Target, Captured]], artifacts: list[Artifact], options: Options, retry: bool
) -> _Made:
    """Lower and verify. `retry`: fp16 that fails gets as few modules in fp32 as will do."""
    reports = work.execute([captured for _, captured in jobs], artifacts)
    failed = any(entry.status == "failed" for entry in reports)
    if not (retry and failed and options.precision == "fp16"):
        return _Made(work.manifest, reports)
    manifest, root, captured = work.manifest, work.root, jobs[0][1]
    targets, cases = [target for target, _ in jobs], work.known().cases

    def attempt(target: Target, artifact: Artifact, place: Path) -> ArtifactReport:
        advance = work.start(f"Lowering to {target.name}, with modules in fp32", len(cases) + 1)
        target.lower(captured, artifact, manifest.identity, place / artifact.path)
        advance()
        return work.verify(place, [artifact], advance)

    with timed(work.seconds, "fallback"):
        artifacts, reports, told = keep_more(targets, artifacts, reports, captured, options, cases, attempt, root)
        return _Made(_with_artifacts(manifest, artifacts, root, targets, captured), reports, told)


def _with_artifacts(
    manifest: Manifest, artifacts: Sequence[Artifact], root: Path, targets: Sequence[Target], captured: Captured
) -> Manifest:
    """The manifest with other artifacts, and its new identity in every artifact that was lowered already."""
    changed = dataclasses.replace(manifest, artifacts=tuple(artifacts)).with_identity()
    for target, artifact in zip(targets, artifacts, strict=True):
        restamp(root / artifact.path, manifest.identity, changed.identity)
        try:
            Session.open(root, artifact, changed.identity, threads=1)
        except RequestError:
            pass  # nothing here executes it, so nothing here can read what it carries
        except DamagedError:  # a format that does not hold the identity as text
            target.lower(captured, artifact, changed.identity, root / artifact.path)
    return changed


def _refuse_unsupported(jobs: Sequence[tuple[Target, Captured]], artifacts: Sequence[Artifact]) -> None:
    lines = []
    for (target, captured), artifact in zip(jobs, artifacts, strict=True):
        for entry in target.unsupported(captured, artifact):
            where = f"in {entry.module}" if entry.module else "in the model itself"
            lines.append(f"  {target.name}: {entry.operation} {where}\n    Remedy: {entry.remedy}.")
    if lines:
        raise UnsupportedError(f"{len(lines)} operations cannot be expressed:\n" + "\n".join(lines))


def _refuse_failures(report: Report, told: Sequence[str] = ()) -> None:
    if not report.failed:
        return
    lines = []
    for entry in report.failed:
        lines += [f"  {entry.path} ({entry.precision}): {problem}" for problem in entry.problems]
        if entry.cause is not None:
            lines.append(f"  {entry.path}: {entry.cause.describe()}")
    raise ParityError(
        "Parity does not hold, so no bundle was written:\n"
        + "\n".join([*lines, *(f"  {line}" for line in told)])
        + "\nRemedy: "
        + ("" if told or not any(entry.cause for entry in report.failed) else "export without --no-fallback, ")
        + "export with --quantize none, or leave the target out with --to."
    )


def _summary(report: Report, known: Known) -> dict[str, Any]:
    """The manifest's parity field: the worst of each artifact, and the noise floor that golden checks need."""
    artifacts = {}
    for entry in report.artifacts:
        measured = [measure.to_json() for measure in entry.measures]
        artifacts[entry.target] = {
            "status": entry.status,
            "engine": entry.engine,
            "max_error": max((m["max_error"] for m in measured if m["max_error"] is not None), default=None),
            "rms_error": max((m["rms_error"] for m in measured if m["rms_error"] is not None), default=None),
            "cosine": min((m["cosine"] for m in measured if m["cosine"] is not None), default=None),
            "agreement": min((m["agreement"] for m in measured), default=None),
            **({"golden": entry.golden} if entry.golden else {}),
        }
    return {
        "reference": report.reference,
        "cases": len(known.cases),
        "noise": _plain(known.noise),
        "artifacts": artifacts,
    }


def _plain(noise: dict[str, Noise]) -> dict[str, dict[str, float]]:
    return {name: dataclasses.asdict(entry) for name, entry in noise.items()}


def _rounded(noise: Noise) -> Noise:
    """Three digits, as the bundle states it, so that a later check uses the same bound."""
    return Noise(float(f"{noise.max_error:.3g}"), float(f"{noise.rms_error:.3g}"))


def producer(targets: Sequence[str]) -> dict[str, str]:
    """Versions of palmtop and of the tools that make these targets."""
    tools = sorted({"palmtop", *(package for target in targets for package in TARGETS[target].packages)})
    return {tool: importlib.metadata.version(tool) for tool in tools}


def list_files(root: Path, artifacts: Sequence[Artifact]) -> tuple[File, ...]:
    """Every file in a bundle with its role, size and hash, by path."""
    folders = {artifact.path.split("/")[0] for artifact in artifacts}
    roles = {GOLDEN_NAME: "golden", PARITY_NAME: "parity", CARD_NAME: "card", PLAN_NAME: "plan", "golden": "golden"}
    found = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        relative = path.relative_to(root).as_posix()
        top = relative.split("/")[0]
        role = "artifact" if top in folders else roles.get(relative, roles.get(top, "tokenizer"))
        found.append(File(relative, role, path.stat().st_size, sha256_file(path)))
    return tuple(found)
