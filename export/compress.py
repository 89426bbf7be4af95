"""Quantization as it was asked for: a plan, the artifacts it gives, the gate, and what to do when they fail it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..quantize.scheme import PRESETS, Plan, Preset, Scheme
from ..quantize.search import Table, Trial, best, pareto, search
from ..quantize.sites import find_sites
from ..runtime.errors import ParityError, RequestError
from ..runtime.reports import ArtifactReport
from .capture import Captured
from .modules import user_path
from .quantization import (
    Advance,
    Feeds,
    Quantizer,
    calibration_rows,
    check_plan,
    observe,
    preset_plan,
    preset_scheme,
    sensitivity_rows,
)
from .remembered import Cache

METRICS = ("cosine", "top1", "accuracy")
_MOST_TRIALS = 7
_AUTO_AGREEMENT = 0.99

Start = Callable[[str, int], Advance]


@dataclass(frozen=True)
class Request:
    """What the user asked of quantization.

    kind: `int8`, `int4`, `auto`, or `plan` with a `plan` of the user's.
    min_agreement: what each executed artifact must keep, by `metric`: the mean cosine of output rows, the share of
        equal decisions (`top1`), or the share of the reference's accuracy on `data` (`accuracy`).
    prefer: `size` or `speed`, of the plans that hold. calibration: a file of texts; None: palmtop's own.
    fallback: whether a preset that fails may give weights more bits. keep_best: leave a bundle when nothing holds.
    activations: whether layers round their inputs (`none`, `dynamic`, `static`); None: as the preset has it.
    """

    kind: str
    plan: Plan | None = None
    min_agreement: float | None = None
    metric: str = "cosine"
    data: Path | None = None
    prefer: str = "size"
    calibration: Path | None = None
    fallback: bool = True
    keep_best: bool = False
    activations: str | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise RequestError(f"--metric is one of {', '.join(METRICS)}, not {self.metric}.")
        if self.prefer not in ("size", "speed"):
            raise RequestError(f"--prefer is size or speed, not {self.prefer}.")
        if self.min_agreement is not None and not 0 < self.min_agreement <= 1:
            raise RequestError(f"--min-agreement is between 0 and 1, not {self.min_agreement}.")
        if self.activations not in (None, "none", "dynamic", "static"):
            raise RequestError(f"--activations is none, dynamic or static, not {self.activations}.")
        if self.activations is not None and self.plan is not None:
            raise RequestError("A plan states the activations of each layer itself: leave --activations out.")
        if (self.metric == "accuracy") != (self.data is not None):
            raise RequestError("--metric accuracy and --data FILE (labelled examples) need each other.")

    def layers(self, preset: str) -> Preset:
        """A preset with the activations that were asked for."""
        found = PRESETS[preset]
        if self.activations is None:
            return found
        return dataclasses.replace(found, layer=dataclasses.replace(found.layer, activations=self.activations))

    @property
    def bound(self) -> float:
        if self.min_agreement is not None:
            return self.min_agreement
        kind = self.plan.precision if self.plan is not None else self.kind
        return PRESETS[kind].min_agreement if kind in PRESETS else _AUTO_AGREEMENT

    def stated(self, plan: Plan) -> dict[str, Any]:
        """What the manifest says of an artifact's quantization: a plan's own file gives the same bundle again."""
        schemes = Counter(str(scheme) for scheme in plan.weights.values())
        return {
            "metric": self.metric,
            "min_agreement": self.bound,
            "smoothing": plan.smoothing,
            "rounding": plan.rounding,
            "weights": dict(sorted(schemes.items())),
        }


@dataclass
class Attempt:
    """What executing a plan gave: reports, sizes in bytes and the mean latency in ms of a case, by target."""

    reports: list[ArtifactReport]
    agreement: float
    sizes: dict[str, int]
    milliseconds: dict[str, float]

    @property
    def passed(self) -> bool:
        return any(report.status == "passed" for report in self.reports) and not any(
            report.status == "failed" for report in self.reports
        )

    @property
    def hopeless(self) -> str | None:
        """Why more bits would not help, when they would not."""
        for report in self.reports:
            if report.status == "failed" and (report.reason or not report.measures):
                return f"{report.path}: {report.reason}"
        return None


@dataclass
class Outcome:
    """The plan that was chosen, the model with it, what executing it gave, and what to tell the user."""

    plan: Plan
    captured: Captured
    attempt: Attempt
    told: tuple[str, ...] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)


Execute = Callable[[Captured, Plan], Attempt]


def compress(
    captured: Captured,
    request: Request,
    calibration: Sequence[Feeds],
    execute: Execute,
    start: Start,
    cache: Cache | None = None,
) -> Outcome:
    """Quantize a captured model so that every artifact holds the bound.

    Args:
        execute: lowers a model to every target in its place in the bundle and verifies the artifacts there.
        start: told of each stage.
        cache: remembers costs and trials of an interrupted search.

    Raises:
        ParityError: nothing that was tried holds; says the best found. (With `keep_best` the best is given instead.)
        RequestError: calibration data that cannot be used, a plan for another model.
    """
    plan = _first_plan(captured, request)
    feeds = calibration_rows(captured, calibration)
    advance = start("Calibrating", len(feeds))
    quantizer = Quantizer(captured, observe(captured, feeds, advance), plan.smoothing, plan.rounding, feeds)
    if request.kind != "auto":
        attempt = _executed(quantizer, plan, execute, start)
        outcome = Outcome(plan, quantizer.captured, attempt)
        if attempt.passed or not request.fallback or request.kind == "plan":
            return _judged(outcome, request)
        if attempt.hopeless:
            raise ParityError(f"The quantized artifacts cannot be executed:\n  {attempt.hopeless}")
    return _searched(quantizer, plan, request, feeds, execute, start, cache)


def _first_plan(captured: Captured, request: Request) -> Plan:
    if request.plan is not None:
        check_plan(captured, request.plan)
        return request.plan
    plan = preset_plan(captured, request.layers("int8" if request.kind == "auto" else request.kind))
    if not plan.weights:
        raise RequestError("This model has no weight that is worth quantizing (4,096 numbers or more in one layer).")
    return plan


def _executed(quantizer: Quantizer, plan: Plan, execute: Execute, start: Start) -> Attempt:
    advance = start("Rounding weights", len(plan.weights))
    return execute(quantizer.apply(plan.weights, advance), plan)


def _judged(outcome: Outcome, request: Request) -> Outcome:
    if outcome.attempt.passed or request.keep_best:
        return outcome
    problems = [
        f"  {report.path}: {problem}"
        for report in outcome.attempt.reports
        if report.status == "failed"
        for problem in report.problems
    ]
    raise ParityError(
        f"The quantized artifacts do not keep an agreement of {request.bound:g}, so no bundle was written:\n"
        + "\n".join(problems)
        + "\nRemedy: ask for less with --min-agreement, let weights have more bits with --quantize auto, or give texts "
        "of your users with --calibrate FILE."
    )


# --- the search -----------------------------------------------------------------------------------------------------


def ladders(captured: Captured, plan: Plan, request: Request) -> dict[str, tuple[Scheme | None, ...]]:
    """The schemes that each weight may have, smallest first."""
    found: dict[str, tuple[Scheme | None, ...]] = {}
    small, large = request.layers("int4"), request.layers("int8")
    for site in find_sites(captured.program):
        path = user_path(site.name)
        if path not in plan.weights:
            continue
        steps: tuple[Scheme | None, ...] = (preset_scheme(site, small), preset_scheme(site, large), None)
        if site.kind == "convolution":
            steps = (large.convolution, None)
        found[path] = steps[1:] if request.kind == "int8" and len(steps) > 2 else steps
    return found


def _searched(
    quantizer: Quantizer,
    plan: Plan,
    request: Request,
    feeds: Sequence[Feeds],
    execute: Execute,
    start: Start,
    cache: Cache | None,
) -> Outcome:
    steps = ladders(quantizer.captured, plan, request)
    if request.prefer == "speed":  # 8-bit kernels are the fast ones; 4 bits are for size
        steps = {path: ladder[-2:] for path, ladder in steps.items()}
    cache = cache or Cache(None)
    table = cache.table()
    if table is None or set(table.rungs) != set(steps):
        small = sensitivity_rows(quantizer.captured, feeds)
        advance = start("Measuring sensitivities", len(small) * sum(len(ladder) - 1 for ladder in steps.values()))
        table = quantizer.table(steps, small, advance)
        cache.keep_table(table)
    standing: tuple[str, Attempt] | None = None  # whose artifacts stand in the bundle

    def attempt(choice: dict[str, int]) -> Trial:
        nonlocal standing
        key = _key(choice)
        known = cache.trial(key)
        if known is not None:
            return dataclasses.replace(known, choice=choice)
        result = _executed(quantizer, plan.replace(table.schemes(choice)), execute, start)
        if result.hopeless:
            raise ParityError(f"The quantized artifacts cannot be executed:\n  {result.hopeless}")
        standing = key, result
        details = {"sizes": result.sizes, "milliseconds": result.milliseconds}
        size = sum(result.sizes.values()) or table.size(choice)
        trial = Trial(choice, result.agreement, size, result.passed, details)
        cache.keep_trial(key, trial)
        return trial

    trials = search(table, request.bound, attempt, most=_MOST_TRIALS)
    chosen = best(trials) if request.prefer == "size" else _fastest(trials)
    if chosen is None and not request.keep_best:
        top = max(trials, key=lambda trial: trial.agreement)
        raise ParityError(
            f"No plan keeps an agreement of {request.bound:g} ({request.metric}); the best of {len(trials)} tried has "
            f"{top.agreement:.5f}. Remedy: ask for less with --min-agreement, or keep that one with --keep-best."
        )
    winner = chosen or max(trials, key=lambda trial: trial.agreement)
    final = plan.replace(table.schemes(winner.choice))
    key = _key(winner.choice)
    if standing is None or standing[0] != key:
        standing = key, _executed(quantizer, final, execute, start)
    told = _told(request, table, winner, trials)
    front = {id(trial) for trial in pareto(trials)}
    rows = [_row(trial, trial is winner, id(trial) in front) for trial in trials]
    return _judged(Outcome(final, quantizer.captured, standing[1], told, rows), request)


def _fastest(trials: Sequence[Trial]) -> Trial | None:
    """Of the trials that hold the one whose artifacts took least time, all of them together."""
    passed = [trial for trial in trials if trial.passed]
    return min(passed, key=lambda trial: sum(trial.details["milliseconds"].values()), default=None)


def _key(choice: Mapping[str, int]) -> str:
    return hashlib.sha256(json.dumps(sorted(choice.items())).encode()).hexdigest()[:16]


def _row(trial: Trial, chosen: bool, on_front: bool) -> dict[str, Any]:
    return {
        "size": trial.size,
        "sizes": trial.details.get("sizes", {}),
        "agreement": round(trial.agreement, 6),
        "milliseconds": trial.details.get("milliseconds", {}),
        "passed": trial.passed,
        "pareto": on_front,
        "chosen": chosen,
    }


def _told(request: Request, table: Table, winner: Trial, trials: Sequence[Trial]) -> tuple[str, ...]:
    schemes = table.schemes(winner.choice).values()
    counts = Counter("as they are" if scheme is None else f"{scheme.bits} bits" for scheme in schemes)
    parts = ", ".join(f"{count} weights {what}" for what, count in sorted(counts.items()))
    if request.kind in PRESETS:
        return (f"{request.kind} alone does not keep an agreement of {request.bound:g}; now {parts}.",)
    return (f"auto: {parts}, after {len(trials)} trials.",)
