"""Does each artifact still give what the reference gives? Cases in, a report out.

Cases come from a bundle's golden vectors (`golden_cases`, no torch needed) or from the eager model itself
(`palmtop.export.reference`). Feeds are padded to a size that the artifact takes, and padded positions do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bundle import Bundle
from .cause import Cause
from .errors import PalmtopError, RequestError
from .fitting import fit_feeds, valid_rows, with_mask
from .gate import Least, asked, later
from .golden import Continuation, Expected, GoldenCase
from .manifest import Artifact, TokenizerSpec
from .parity import Agreement, Bound, Comparison, Noise, bound_for
from .preprocess import text_preparer
from .reports import ArtifactReport, Report
from .session import Session
from .tokenizer import Tokenizer

# Scores whose largest entry is the task's decision: over the last axis, per sequence or per token, or over the tokens.
_DECISIONS = {
    "text-classification": "last axis",
    "multiple-choice": "last axis",
    "token-classification": "last axis",
    "fill-mask": "last axis",
    "question-answering": "tokens",
    "text-generation": "last axis",
    "text2text-generation": "last axis",
    "image-to-text": "last axis",
}


@dataclass(frozen=True)
class Case:
    """Named inputs with a leading batch axis, and for each output what the reference gives, one entry a row.

    An entry leaves out padded positions; models without an attention mask have a single entry with the whole output.
    generated: what a model that generates says after the only row.
    """

    name: str
    feeds: dict[str, np.ndarray]
    expected: dict[str, list[Expected]]
    generated: Continuation | None = None


def verify_artifact(
    artifact: Artifact,
    open_session: Callable[[], Session],
    cases: Sequence[Case],
    *,
    task: str,
    tokenizer: TokenizerSpec | None,
    noise: dict[str, Noise],
    least: Least | None = None,
    progress: Callable[[], None] | None = None,
) -> ArtifactReport:
    """Execute an artifact on all cases and compare.

    Args:
        open_session: loads the artifact; a RequestError from it means that nothing here executes the format, which is
            reported as `not executed`, never as passed.
        noise: the reference's noise floor by output.
        least: what a quantized artifact has to keep; None: what it was asked to.
        progress: called after each case.
    """
    report = ArtifactReport(artifact.target, artifact.path, artifact.precision, status="failed")
    try:
        session = open_session()
    except RequestError as error:
        report.status, report.reason = "not executed", str(error)
        return report
    report.engine = session.engine
    comparisons = {spec.name: Comparison(spec.name) for spec in artifact.outputs}
    least = least or asked(artifact)
    bounds = {
        name: bound_for(artifact.precision, noise.get(name, Noise(0.0, 0.0)), least.of(name)) for name in comparisons
    }
    decisions = task in _DECISIONS or any(case.generated is not None for case in cases)
    agreement = Agreement(least=least.decisions) if decisions else None
    for case in cases:
        fitted = fit_feeds(case.feeds, artifact, tokenizer)
        if fitted is None:
            report.skipped.append(case.name)
            continue
        began = time.perf_counter()
        try:
            outputs = session.run(fitted)
        except PalmtopError as error:
            report.reason = f"cannot be executed on '{case.name}': {error}"
            return report
        for name, comparison in comparisons.items():
            rows = valid_rows(outputs[name], artifact, name, with_mask(fitted, case.feeds, tokenizer))
            if len(rows) < len(case.expected[name]):
                report.reason = f"{name} has {len(rows)} rows in '{case.name}', not {len(case.expected[name])}"
                return report
            for expected, actual in zip(case.expected[name], rows, strict=False):  # rows beyond are padding
                if actual.shape != expected.shape:
                    report.reason = (
                        f"{name} has shape {list(actual.shape)} in '{case.name}', not {list(expected.shape)}"
                    )
                    return report
                width = expected.shape[-1] if expected.every == 1 and expected.shape else None
                comparison.add(case.name, outputs[name].shape, expected.values, expected.pick(actual), width)
                if agreement is not None and task in _DECISIONS and expected.every == 1:
                    tolerance = bounds[name].max_error * float(np.sqrt(np.mean(np.square(expected.values))))
                    agreement.add(*_scores(task, expected, actual), tolerance)
        if case.generated is not None and agreement is not None:
            try:
                _say(session, case.generated, fitted, agreement, _tolerance(bounds["logits"], case.expected["logits"]))
            except PalmtopError as error:
                report.reason = f"cannot generate on '{case.name}': {error}"
                return report
        report.seconds += time.perf_counter() - began
        report.cases += 1
        if progress is not None:
            progress()
    report.measures = [comparison.measure(bounds[name]) for name, comparison in comparisons.items()]
    report.agreement = agreement if agreement is not None and agreement.total else None
    if not report.cases:
        report.reason = f"none of the {len(cases)} cases fits what the artifact takes, so nothing was compared"
    report.status = "passed" if not report.problems else "failed"
    if report.status == "failed" and artifact.precision != "fp32":
        report.cause = _cause(session, report, cases, tokenizer)
    return report


def _say(
    session: Session, generated: Continuation, feeds: dict[str, np.ndarray], agreement: Agreement, tolerance: float
) -> None:
    """Count how often the artifact would say the token that the reference said, after the tokens that it said before.

    While all are the same, this is what the artifact says on its own.
    """
    from .generation.session import GenerationSession

    if not isinstance(session, GenerationSession):
        return
    for found, token, margin in zip(
        session.choices(feeds, generated.ids), generated.ids, generated.margins, strict=True
    ):
        agreement.count(found == token, margin > 2 * tolerance)


def _tolerance(bound: Bound, expected: Sequence[Expected]) -> float:
    """How far a value of an output may be off, in its own units."""
    return bound.max_error * float(np.sqrt(np.mean(np.square(np.concatenate([entry.values for entry in expected])))))


def _cause(
    session: Session, report: ArtifactReport, cases: Sequence[Case], tokenizer: TokenizerSpec | None
) -> Cause | None:
    worst = report.worst
    case = next((case for case in cases if worst is not None and case.name == worst.worst_case), None)
    if worst is None or case is None:
        return None
    try:
        return session.diagnose(worst_row(session, case, tokenizer).feeds, worst.bound or Bound(0.0, 0.0))
    except PalmtopError:  # the failure stands without its cause
        return None


def worst_row(session: Session, case: Case, tokenizer: TokenizerSpec | None) -> Case:
    """The case as the artifact takes it, padded; of an artifact that takes one row at a time the row that is worst."""
    feeds = fit_feeds(case.feeds, session.artifact, tokenizer)
    if feeds is None:
        raise RequestError(f"'{case.name}' is too long for {session.artifact.path}.")
    rows = len(next(iter(feeds.values()))) if feeds else 1
    if not session.splits_batch or rows == 1:
        return Case(case.name, feeds, case.expected)
    found: list[tuple[float, int, Case]] = []
    for row in range(rows):
        single = {name: array[row : row + 1] for name, array in feeds.items()}
        expected = {name: _expected_row(entries, row) for name, entries in case.expected.items()}
        outputs = session.run(single)
        comparison = Comparison("")
        for name, entries in expected.items():
            for entry, actual in zip(entries, valid_rows(outputs[name], session.artifact, name, single), strict=False):
                comparison.add("", actual.shape, entry.values, entry.pick(actual))
        measure = comparison.measure()
        error = np.inf if measure.nonfinite else measure.max_error
        found.append((error, -row, Case(f"{case.name}, row {row + 1}", single, expected)))
    return max(found, key=lambda entry: entry[:2])[2]


def _expected_row(entries: list[Expected], row: int) -> list[Expected]:
    """What the reference gives for one row; nothing where it was recorded for the whole batch, and not in full."""
    if row < len(entries) and len(entries) > 1:
        return [entries[row]]
    entry = entries[0]
    if entry.every != 1 or not entry.shape or row >= entry.shape[0]:
        return [entry] if row == 0 and len(entries) == 1 and entry.shape[:1] == (1,) else []
    return [Expected.of(entry.values.reshape(entry.shape)[row : row + 1], None)]


def decides(task: str) -> bool:
    """Whether a task's outputs are scores of which the largest is its answer."""
    return task in _DECISIONS


def golden_cases(cases: Iterable[GoldenCase]) -> list[Case]:
    """A bundle's golden vectors as cases of one row."""
    return [
        Case(case.name, case.feeds(), {name: [expected] for name, expected in case.outputs.items()}, case.generated)
        for case in cases
    ]


def verify_bundle(
    bundle: Bundle,
    *,
    targets: Sequence[str] | None = None,
    cases: Sequence[Case] | None = None,
    noise: dict[str, Noise] | None = None,
    reference: str = "golden vectors",
    threads: int | None = None,
    start: Callable[[str, int], Callable[[], None]] | None = None,
) -> Report:
    """Verify a bundle's artifacts and, against the golden vectors, its tokenizer.

    Args:
        targets: which artifacts; None: all.
        cases: what to compare on; None: the bundle's golden vectors.
        start: called with an artifact's path and the number of cases, gives its `progress`.

    Raises:
        RequestError: the bundle has no such target.
        DamagedError: files of the bundle are damaged or swapped.
    """
    manifest = bundle.manifest
    chosen = targets if targets else manifest.targets
    golden = bundle.golden()
    on_golden = cases is None
    cases = golden_cases(golden) if cases is None else cases
    noise = recorded_noise(bundle) if noise is None else noise
    reports = []
    for target in chosen:
        artifact = bundle.artifact(target)

        def open_session(target: str = target) -> Session:
            return bundle.open_session(target, threads)

        progress = start(artifact.path, len(cases)) if start is not None else None
        reports.append(
            verify_artifact(
                artifact,
                open_session,
                cases,
                task=manifest.task,
                tokenizer=manifest.tokenizer,
                noise=noise,
                least=later(manifest, artifact, on_golden),
                progress=progress,
            )
        )
    return Report(reference, reports, verify_tokenizer(bundle, golden))


def verify_tokenizer(bundle: Bundle, golden: Sequence[GoldenCase]) -> dict[str, Any] | None:
    """Whether the bundle's vocabulary gives the golden ids, masks and offsets. None for models without text."""
    if bundle.manifest.tokenizer is None:
        return None
    spec = bundle.manifest.tokenizer
    tokenizer = Tokenizer.open(bundle.root / spec.path, spec)
    prepare = text_preparer(bundle.manifest.preprocess)
    different = [case.name for case in golden if case.text is not None and not _reproduces(tokenizer, prepare, case)]
    return {
        "cases": len(golden),
        "different": different,
        "passed": not different,
    }


def _reproduces(tokenizer: Tokenizer, prepare: Callable[[str], str], case: GoldenCase) -> bool:
    assert case.text is not None
    seconds = list(case.choices) if case.choices else [case.text_pair] if case.text_pair is not None else None
    encoded = tokenizer(
        [prepare(case.text)] * (len(seconds) if seconds else 1),
        seconds,
        length=case.options.get("pad_to"),
        max_length=case.options["max_length"],
        truncation=case.options["truncation"],
    )
    rows = slice(None) if case.choices else 0
    same = all(np.array_equal(encoded.inputs[name][rows], array) for name, array in case.encoding.items())
    return same and encoded.offsets[rows].tolist() == case.offsets


def recorded_noise(bundle: Bundle) -> dict[str, Noise]:
    """The noise floor that was measured at export, by output (in the manifest's parity summary)."""
    return {name: Noise(**entry) for name, entry in bundle.manifest.parity.get("noise", {}).items()}


def _scores(task: str, expected: Expected, actual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reference = expected.values.reshape(expected.shape)
    if _DECISIONS[task] == "tokens" or reference.ndim == 1:
        return reference.reshape(1, -1), actual.reshape(1, -1)
    return reference.reshape(-1, reference.shape[-1]), actual.reshape(-1, actual.shape[-1])
