"""How fast a bundle is here: latency by length, throughput, cold start, memory and size, beside the agreement.

Whatever is compared runs in turns within one process, so that a busy machine slows all of it: ratios hold where single
figures do not. A contender is an artifact, or the eager checkpoint (which `palmtop.export.eager` makes a session of).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .backends.coreml import INTERPRETER
from .bench_inputs import example_calls, feeds_of_length, lengths_of
from .bench_report import EAGER, BenchReport, Entry, Latency, Settings
from .bundle import Bundle
from .errors import RequestError
from .fitting import fit_feeds
from .gate import later, of_one_input
from .golden import GoldenCase
from .inspect import artifact_size
from .manifest import Artifact
from .parity import Comparison, Noise, bound_for
from .pipelines import Pipeline, pipeline_over
from .session import Session
from .verify import golden_cases, recorded_noise, verify_artifact

# However little time is given: fewer calls say nothing of their spread.
_LEAST_CALLS = 5
INTERPRETER_NOTE = "executed by palmtop's interpreter: its speed says nothing of a phone's, its answers do"

Start = Callable[[str, int], Callable[[], None]]


@dataclass(frozen=True)
class Contender:
    """Something that answers: a loaded artifact or model, its pipeline (None for models without text), its bytes.

    `cold_start(input, threads)` gives what `coldstart.measure` gives; `note` is what a reader of the figures must know.
    """

    name: str
    session: Session
    pipeline: Pipeline | None
    size: int
    cold_start: Callable[[Any, int], dict[str, float]]
    note: str | None = None


def bench(
    bundle: Bundle,
    targets: Sequence[str] | None,
    settings: Settings,
    eager: Callable[[], Contender] | None = None,
    start: Start | None = None,
) -> BenchReport:
    """Measure a bundle's artifacts, and the eager model beside them.

    Args:
        targets: which artifacts; None: all that can be executed here.
        eager: loads the eager contender.
        start: called with what is measured and of how many steps it consists; gives what to call after each.

    Raises:
        RequestError: no such artifact, a length that one does not take, or a target asked for that cannot run here.
        DamagedError: files of the bundle are damaged or swapped.
    """
    start = start or (lambda what, count: lambda: None)
    chosen = [bundle.artifact(name) for name in dict.fromkeys(targets or bundle.manifest.targets)]
    lengths = {artifact.target: lengths_of(artifact, settings.lengths) for artifact in chosen}
    golden = bundle.golden()
    calls = example_calls(bundle, golden)
    contenders, entries = _open(bundle, chosen, settings, required=bool(targets), start=start)
    if eager is not None:
        contender = eager()
        contenders.append(contender)
        lengths[EAGER] = tuple(sorted({n for found in lengths.values() for n in found}, key=lambda n: n or 0))
        entries[EAGER] = _entry(contender.session.artifact, contender.size)
        entries[EAGER].engine, entries[EAGER].note = contender.session.engine, contender.note
    noise = recorded_noise(bundle)
    _golden_agreement(bundle, contenders, entries, golden, noise, start)
    _latencies(bundle, contenders, entries, lengths, golden, settings, noise, start)
    if calls:
        _throughput(contenders, entries, calls, settings, start)
    for contender in contenders:
        advance = start(f"Cold starts of {contender.name}", settings.cold_starts)
        found = []
        for _ in range(settings.cold_starts):
            found.append(contender.cold_start(calls[0] if calls else None, settings.threads))
            advance()
        if found:
            medians = {key: float(np.median([entry[key] for entry in found])) for key in found[0]}
            entries[contender.name].cold_start = {**medians, "processes": len(found)}
    return BenchReport(bundle.manifest.task, settings, list(entries.values()))


def _open(
    bundle: Bundle, chosen: Sequence[Artifact], settings: Settings, required: bool, start: Start
) -> tuple[list[Contender], dict[str, Entry]]:
    from . import coldstart

    tokenizer = bundle.tokenizer()
    contenders, entries = [], {}
    advance = start("Loading", len(chosen))
    for artifact in chosen:
        entry = entries[artifact.target] = _entry(artifact, artifact_size(bundle, artifact))
        try:
            session = bundle.open_session(artifact.target, settings.threads)
        except RequestError as error:
            if required:
                raise
            entry.reason = str(error)
            advance()
            continue
        entry.engine = session.engine
        entry.note = INTERPRETER_NOTE if session.engine == INTERPRETER else None
        arguments = [str(bundle.root), artifact.target]
        contenders.append(
            Contender(
                artifact.target,
                session,
                pipeline_over(bundle.manifest, tokenizer, session),
                entry.size,
                partial(coldstart.measure, arguments),
            )
        )
        advance()
    if not contenders:
        reasons = "\n".join(f"{entry.path}: {entry.reason}" for entry in entries.values())
        raise RequestError(f"Nothing on this machine executes this bundle.\n{reasons}")
    return contenders, entries


def _entry(artifact: Artifact, size: int) -> Entry:
    return Entry(artifact.target, artifact.path, artifact.precision, size)


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    repeats: int | None,
    seconds: float,
    advance: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call, the runs taking turns (and turns at being first), one untimed call of each before.

    Args:
        repeats: how many rounds; None: until each run has had `seconds` on average, and at least five.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    began = time.perf_counter()
    rounds = 0
    while rounds < (_LEAST_CALLS if repeats is None else repeats) or (
        repeats is None and time.perf_counter() - began < seconds * len(runs)
    ):
        for name in names[rounds % len(names) :] + names[: rounds % len(names)]:
            before = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - before)
        rounds += 1
    if advance is not None:
        advance()
    return times


def _latencies(
    bundle: Bundle,
    contenders: Sequence[Contender],
    entries: dict[str, Entry],
    lengths: dict[str, tuple[int | None, ...]],
    golden: Sequence[GoldenCase],
    settings: Settings,
    noise: dict[str, Noise],
    start: Start,
) -> None:
    wanted = sorted({n for found in lengths.values() for n in found}, key=lambda n: n or 0)
    advance = start("Latency", len(wanted))
    for length in wanted:
        feeds = feeds_of_length(golden, length)
        taking = [contender for contender in contenders if length in lengths[contender.name]]
        fitted = {}
        for contender in taking:
            own = fit_feeds(feeds, contender.session.artifact, bundle.manifest.tokenizer)
            if own is None:
                raise RequestError(f"{contender.session.artifact.path} does not take the golden input at {length}.")
            fitted[contender.name] = own
        outputs = {c.name: c.session.run(fitted[c.name]) for c in taking}
        runs = {c.name: partial(c.session.run, fitted[c.name]) for c in taking}
        times = interleaved(runs, settings.repeats, settings.seconds, advance)
        for contender in taking:
            mine = times[contender.name]
            p50, p90, p99 = (1e3 * float(value) for value in np.percentile(mine, (50, 90, 99)))
            latency = Latency(length, len(mine), p50, p90, p99)
            if EAGER in outputs and contender.name != EAGER:
                latency.speedup = _speedup(times[EAGER], mine)
                _compare(entries[contender.name], latency, contender, fitted[contender.name], outputs, noise)
            entries[contender.name].latency.append(latency)


def _compare(
    entry: Entry,
    latency: Latency,
    contender: Contender,
    feeds: dict[str, np.ndarray],
    outputs: dict[str, dict[str, np.ndarray]],
    noise: dict[str, Noise],
) -> None:
    """Put the agreement with the eager model beside the latency; a disagreement is a problem."""
    artifact = contender.session.artifact
    measures = []
    for spec in artifact.outputs:
        comparison = Comparison(spec.name)
        expected = outputs[EAGER][spec.name]
        # Rows and tokens that only the artifact has are padding.
        actual = outputs[contender.name][spec.name][tuple(slice(size) for size in expected.shape)]
        if actual.shape != expected.shape:
            entry.problems.append(f"{spec.name} has shape {list(actual.shape)}, the reference {list(expected.shape)}")
            continue
        comparison.add(f"{latency.length} tokens", actual.shape, expected, actual)
        floor = noise.get(spec.name, Noise(0.0, 0.0))
        measures.append(comparison.measure(bound_for(artifact.precision, floor, of_one_input(artifact))))
    latency.cosine = min((measure.cosine for measure in measures), default=None)
    latency.max_error = max((measure.max_error for measure in measures), default=None)
    entry.problems += [measure.describe() for measure in measures if not measure.passed]


def _throughput(
    contenders: Sequence[Contender],
    entries: dict[str, Entry],
    calls: Sequence[Any],
    settings: Settings,
    start: Start,
) -> None:
    advance = start("Throughput", 2)
    for mode in ("one at a time", "batches"):
        runs: dict[str, Callable[[], Any]] = {}
        for contender in contenders:
            pipeline: Any = contender.pipeline
            if pipeline is None or (mode == "batches" and not _takes_batches(contender.session.artifact)):
                entries[contender.name].sentences_per_second[mode] = None
            elif mode == "batches":
                runs[contender.name] = partial(pipeline, list(calls), batch_size=settings.batch)
            else:
                runs[contender.name] = partial(_one_by_one, pipeline, calls)
        times = interleaved(runs, settings.repeats, settings.seconds, advance) if runs else {}
        for name, mine in times.items():
            entries[name].sentences_per_second[mode] = len(calls) / float(np.median(mine))
            if EAGER in times and name != EAGER:
                entries[name].speedups[mode] = _speedup(times[EAGER], mine)


def _one_by_one(pipeline: Any, calls: Sequence[Any]) -> None:
    for call in calls:
        pipeline(call)


def _takes_batches(artifact: Artifact) -> bool:
    axis = artifact.inputs[0].dims[0]
    return axis.largest is None or axis.largest > 1


def _golden_agreement(
    bundle: Bundle,
    contenders: Sequence[Contender],
    entries: dict[str, Entry],
    golden: Sequence[GoldenCase],
    noise: dict[str, Noise],
    start: Start,
) -> None:
    cases = golden_cases(golden)
    advance = start("Agreement with the golden vectors", len(cases) * len(contenders))
    for contender in contenders:
        report = verify_artifact(
            contender.session.artifact,
            partial(_same, contender.session),
            cases,
            task=bundle.manifest.task,
            tokenizer=bundle.manifest.tokenizer,
            noise=noise,
            least=later(bundle.manifest, contender.session.artifact, golden=True),
            progress=advance,
        )
        entries[contender.name].golden = report
        entries[contender.name].problems += report.problems


def _same(session: Session) -> Session:
    return session


def _speedup(base: list[float], mine: list[float]) -> float:
    return float(np.median([one / other for one, other in zip(base, mine, strict=True)]))
