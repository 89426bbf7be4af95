"""When a coarser precision fails parity: the fewest modules to keep in fp32 so that it holds.

Delta debugging (Zeller and Hildebrandt, 2002) over PyTorch modules: every trial lowers the one target that failed and
verifies the artifact, so that the gate of the search is the gate of the export, for any format.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.manifest import Artifact
from ..runtime.reports import ArtifactReport
from ..runtime.verify import Case
from .capture import Captured
from .suspects import Suspect, overflow_reason, suspects
from .targets import Options, Target

# A trial takes as long as lowering and verifying the artifact. After this many the best that passed is taken.
MOST_TRIALS = 24

Trial = Callable[[tuple[str, ...]], ArtifactReport]
Rank = Callable[[ArtifactReport], list[Suspect]]


@dataclass(frozen=True)
class Kept:
    """What a search found. `modules`: to keep, the user's own included; None when not even keeping all would do.

    `reasons`: why, for each that the user did not name. `report`: of the last artifact tried with exactly `modules`
    (or, when that is None, with every module kept). `minimal`: whether leaving out any one was seen to fail.
    """

    modules: tuple[str, ...] | None
    reasons: dict[str, str]
    report: ArtifactReport
    trials: int
    minimal: bool = True


def keep_more(
    targets: Sequence[Target],
    artifacts: Sequence[Artifact],
    reports: Sequence[ArtifactReport],
    captured: Captured,
    options: Options,
    cases: Sequence[Case],
    attempt: Callable[[Target, Artifact, Path], ArtifactReport],
    root: Path,
) -> tuple[list[Artifact], list[ArtifactReport], tuple[str, ...]]:
    """For every artifact that failed, the fewest modules to keep in fp32; what passes then takes its place.

    Args:
        attempt: lowers an artifact below a folder and verifies it there.
        root: the bundle. Trials are made in a folder in it, which is gone afterwards.

    Returns:
        Artifacts and reports, those of failures replaced where something helped; and what to tell the user.
    """
    artifacts, reports = list(artifacts), list(reports)
    told: list[str] = []

    def rank(report: ArtifactReport) -> list[Suspect]:
        worst = report.worst.worst_case if report.worst is not None else None
        feeds = next((case.feeds for case in cases if case.name == worst), None)
        return suspects(captured, feeds)

    for index, (target, failed) in enumerate(zip(targets, reports, strict=True)):
        if failed.status != "failed" or not failed.measures:
            continue
        places: dict[tuple[str, ...], tuple[Artifact, Path]] = {}

        def trial(
            modules: tuple[str, ...],
            target: Target = target,
            places: dict[tuple[str, ...], tuple[Artifact, Path]] = places,
        ) -> ArtifactReport:
            artifact = target.plan(captured, dataclasses.replace(options, keep_fp32=modules))
            place = root / f".{target.name}.{len(places)}"
            places[modules] = artifact, place
            report = attempt(target, artifact, place)
            if report.status != "passed":
                shutil.rmtree(place, ignore_errors=True)
            return report

        try:
            kept = fewest_kept(failed, trial, rank, options.keep_fp32)
            told.append(_told(target.name, kept))
            if kept.modules is not None:
                artifact, place = places[kept.modules]
                quantization = {**(artifact.quantization or {}), "kept_because": kept.reasons}
                artifacts[index] = dataclasses.replace(artifact, quantization=quantization)
                reports[index] = kept.report
                folder = artifact.path.split("/")[0]
                shutil.rmtree(root / folder)
                (place / folder).rename(root / folder)
        finally:
            for _, place in places.values():
                shutil.rmtree(place, ignore_errors=True)
    return artifacts, reports, tuple(told)


def _told(target: str, kept: Kept) -> str:
    if kept.modules is None:
        problems = kept.report.problems or ["it fails still"]
        return f"{target}: keeping modules in fp32 does not help; with all of them kept, {problems[0]}."
    names = "; ".join(f"{name or 'the model itself'} ({reason})" for name, reason in kept.reasons.items())
    more = "" if kept.minimal else f" The search ended after {kept.trials} trials: some may be kept without need."
    count = f"{len(kept.reasons)} module{'s' if len(kept.reasons) != 1 else ''}"
    return f"{target}: fp16 alone fails parity, so {count} stayed in fp32: {names}.{more}"


@dataclass
class _Search:
    trial: Trial
    floor: tuple[str, ...]
    order: list[str]  # every candidate in order of execution, in which modules are always named
    most: int
    reports: dict[tuple[str, ...], ArtifactReport] = field(default_factory=dict)

    @property
    def exhausted(self) -> bool:
        return len(self.reports) >= self.most

    def report(self, modules: Sequence[str]) -> ArtifactReport:
        key = (*self.floor, *(name for name in self.order if name in set(modules)))
        if key not in self.reports:
            self.reports[key] = self.trial(key)
        return self.reports[key]

    def passes(self, modules: Sequence[str]) -> bool:
        return self.report(modules).status == "passed"


def fewest_kept(
    failed: ArtifactReport, trial: Trial, rank: Rank, floor: Sequence[str] = (), most: int = MOST_TRIALS
) -> Kept:
    """Search for as few modules as possible that make an artifact pass when they stay in fp32.

    Args:
        failed: what verifying without them gave.
        trial: lowers and verifies with these modules kept.
        rank: from the report of a failure, every module that could be kept, the likeliest first (`suspects.suspects`).
        floor: modules that the user keeps anyway.
        most: trials after which the smallest set that passed so far is taken.
    """
    ranking = rank(failed)
    known = {suspect.module: suspect for suspect in ranking}
    candidates = [name for name in known if not _covered(name, floor)]
    search = _Search(trial, tuple(floor), candidates, most)
    likely = _likely(search, failed, rank, known)
    ordered = [*likely, *(name for name in candidates if name not in likely)]
    found = likely if likely and search.passes(likely) else _shortest_prefix(search, ordered, len(likely))
    if found is None:
        return Kept(None, {}, search.report(ordered), len(search.reports))
    found, minimal, without = _reduced(search, found)
    chosen = [name for name in candidates if name in found]
    reasons = {name: _why(name, known[name], failed, without.get(name)) for name in chosen}
    return Kept((*floor, *chosen), reasons, search.report(found), len(search.reports), minimal)


def _likely(search: _Search, failed: ArtifactReport, rank: Rank, known: dict[str, Suspect]) -> list[str]:
    """Modules known to overflow. One input rarely shows all of them: a trial that fails may point to more."""
    likely: list[str] = []
    report = failed
    while True:
        named: dict[str, float] = {}
        if report.cause is not None:
            named |= report.cause.overflowing or {str(report.cause.module): 0.0}
        named |= {suspect.module: suspect.peak for suspect in rank(report) if suspect.overflows}
        for name, peak in named.items():
            if name in known:
                known[name].peak = max(known[name].peak, peak)
        new = [name for name in search.order if name in named and name not in likely]
        if not new or 2 * len(search.reports) >= search.most:
            return likely
        likely += new
        report = search.report(likely)
        if report.status == "passed":
            return likely


def _shortest_prefix(search: _Search, ordered: list[str], failing: int) -> list[str] | None:
    """The shortest beginning of `ordered` that passes, taking it that more does not harm; None when all fails."""
    low, high = failing, max(2 * failing, 1)
    while not search.passes(ordered[:high]):
        if high >= len(ordered):
            return None
        low, high = high, (len(ordered) if search.exhausted else 2 * high)
    high = min(high, len(ordered))
    while high - low > 1 and not search.exhausted:
        middle = (low + high) // 2
        low, high = (low, middle) if search.passes(ordered[:middle]) else (middle, high)
    return ordered[:high]


def _reduced(search: _Search, found: list[str]) -> tuple[list[str], bool, dict[str, ArtifactReport]]:
    """Leave out halves, quarters, ... single modules as long as what remains passes.

    Gives also whether every single one was tried, and the reports of what failed without it.
    """
    chunk = len(found) // 2
    without: dict[str, ArtifactReport] = {}
    while chunk:
        for start in range(len(found) - chunk, -chunk, -chunk):
            rest = found[: max(start, 0)] + found[start + chunk :]
            if not rest or len(rest) == len(found):
                continue
            if search.exhausted:
                return found, False, without
            if search.passes(rest):
                found = rest
            elif chunk == 1:
                without[found[start]] = search.report(rest)
        chunk = min(chunk // 2, len(found) // 2) if chunk > 1 else 0
    return found, True, without


def _why(name: str, suspect: Suspect, failed: ArtifactReport, without: ArtifactReport | None) -> str:
    if suspect.overflows:
        return overflow_reason(suspect.peak)
    problems = (without or failed).problems
    return f"without it, {problems[0]}" if problems else suspect.why()


def _covered(name: str, floor: Sequence[str]) -> bool:
    return any(name == kept or name.startswith(f"{kept}.") for kept in floor)
