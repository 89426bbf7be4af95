"""Measure a bundle here: latency, throughput, cold start, memory and size; or, with --accuracy, the task's metric.

What is compared runs in turns within one process: the ratios hold on a busy machine too. Each figure stands beside the
agreement that was measured in the same run.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from ...runtime.bench import Contender, bench
from ...runtime.bench_report import EAGER, BenchReport, Entry, Settings
from ...runtime.bundle import Bundle
from ...runtime.errors import ParityError, RequestError
from ...runtime.labelled import FIELDS
from ...runtime.scores import Score, ScoreReport, score_bundle
from .console import Console, print_json, size
from .options import positive

HELP = "how fast a bundle is here, and how often right"

EPILOG = "data files for --accuracy, one example a line (JSON lines in .jsonl, text<TAB>label in .tsv):\n" + "\n".join(
    textwrap.fill(f"  {task:22}{fields}", width=110, subsequent_indent=24 * " ") for task, fields in FIELDS.items()
)

_BATCH = 8
# Options of the speed measurement, which --accuracy does not make.
_OF_SPEED = ("lengths", "repeats", "seconds", "cold_starts")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--target", metavar="TARGETS", help="only these artifacts (default: all that run here)")
    parser.add_argument("--reference", metavar="SOURCE", help="this checkpoint in PyTorch, eager, beside them")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id given as --reference")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the reference")
    parser.add_argument("--threads", type=positive, metavar="N", default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument(
        "--batch", type=positive, metavar="N", default=_BATCH, help="rows of a batch (default: %(default)s)"
    )
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--lengths", type=_lengths, metavar="N,N", help="input lengths in tokens (default: 16, 64, 128 where it can)"
    )
    speed.add_argument(
        "--seconds", type=_seconds, metavar="S", help="time for each figure of each contender (default: 2)"
    )
    speed.add_argument("--repeats", type=positive, metavar="N", help="calls for each figure, in place of --seconds")
    speed.add_argument("--cold-starts", type=_count, metavar="N", help="fresh processes of each (default: 3)")
    accuracy = parser.add_argument_group("accuracy")
    accuracy.add_argument("--accuracy", action="store_true", help="the task's metric on --data, in place of speed")
    accuracy.add_argument("--data", metavar="FILE", help="labelled examples; see below")


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


def _count(text: str) -> int:
    return 0 if text == "0" else positive(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0, got '{text}'")
    return value


def run(arguments: argparse.Namespace, console: Console) -> int:
    _check(arguments)
    bundle = Bundle.open(arguments.bundle)
    targets = [name.strip() for name in arguments.target.split(",")] if arguments.target else None
    if arguments.accuracy:
        with console.progress() as progress:
            scores = score_bundle(
                bundle,
                Path(arguments.data),
                targets,
                batch=arguments.batch,
                threads=arguments.threads,
                eager=_eager(arguments, bundle),
                start=progress,
            )
        _show_scores(arguments, console, scores)
        return 0
    given = {name: getattr(arguments, name) for name in _OF_SPEED if getattr(arguments, name) is not None}
    settings = Settings(batch=arguments.batch, threads=arguments.threads, **given)
    with console.progress() as progress:
        report = bench(bundle, targets, settings, _eager(arguments, bundle), progress)
    _show(arguments, console, report)
    return ParityError.exit_code if report.problems else 0


def _check(arguments: argparse.Namespace) -> None:
    """Options that go together are given together; none is accepted and then dropped."""
    if arguments.accuracy and not arguments.data:
        raise RequestError("--accuracy needs labelled examples: --data FILE (see palmtop bench --help).")
    if arguments.data and not arguments.accuracy:
        raise RequestError("--data means nothing without --accuracy.")
    if arguments.accuracy:
        idle = [f"--{name.replace('_', '-')}" for name in _OF_SPEED if getattr(arguments, name) is not None]
        if idle:
            raise RequestError(f"{', '.join(idle)}: of the speed measurement, which --accuracy does not make.")
    if arguments.repeats is not None and arguments.seconds is not None:
        raise RequestError("--repeats and --seconds both say how long to measure: give one.")
    if not arguments.reference and (arguments.revision or arguments.trust_remote_code):
        raise RequestError("--revision and --trust-remote-code are of the reference: give it with --reference SOURCE.")


def _eager(arguments: argparse.Namespace, bundle: Bundle) -> Callable[[], Contender] | None:
    """Loads the reference; None when none was given."""
    if not arguments.reference:
        return None
    try:
        from ..eager import eager_contender
    except ImportError as error:
        raise RequestError(
            f"--reference runs the eager model, and that needs a package that is not installed ({error}). "
            "Install it with: pip install 'palmtop[export]'"
        ) from error
    reference = arguments.reference, arguments.revision, arguments.trust_remote_code, arguments.threads
    return lambda: eager_contender(bundle, *reference)


def _show(arguments: argparse.Namespace, console: Console, report: BenchReport) -> None:
    if arguments.json:
        print_json({"bundle": str(arguments.bundle), "reference": arguments.reference, **report.to_json()})
        return
    has_eager = any(entry.name == EAGER for entry in report.entries)
    compared = ("x eager", "cosine", "error") if has_eager else ("cosine", "error")
    columns = ("target", "precision", "tokens", "p50 ms", "p90 ms", "p99 ms", "calls", *compared)
    console.table(columns, [row for entry in report.entries for row in _latency_rows(entry, has_eager)], columns[2:])
    console.say()
    columns = ("target", "size", "cold start s", "peak memory", "sentences/s", "in batches", *compared)
    console.table(columns, [_total_row(entry, has_eager) for entry in report.entries], columns[1:])
    console.say()
    threads = f"{report.settings.threads} thread{'s' if report.settings.threads > 1 else ''}"
    console.say(
        f"{threads}; batches of {report.settings.batch}; cold start: process start, import, load and first answer. "
        + ("x eager: how many times as fast as PyTorch, paired. " if has_eager else "")
        + "cosine and error: the worst, error relative to the output's scale; by length "
        + ("with the eager model on the same input" if has_eager else "the golden vectors'")
        + ", below with the golden vectors; all of this run."
    )
    _engines(console, report.entries)
    for problem in report.problems:
        console.error(problem)


def _engines(console: Console, entries: Sequence[Entry | Score]) -> None:
    console.say("Executed by: " + "; ".join(f"{entry.name}: {entry.engine}" for entry in entries if entry.engine) + ".")
    for entry in entries:
        if entry.note:
            console.warn(f"{entry.name}: {entry.note}.")
        if entry.reason:
            console.warn(f"{entry.path}: not executed. {entry.reason}")


def _latency_rows(entry: Entry, has_eager: bool) -> list[tuple[str, ...]]:
    rows = []
    for index, latency in enumerate(entry.latency):
        head = (entry.name, entry.precision) if index == 0 else ("", "")
        times = [f"{value:.2f}" for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms)]
        tokens = "-" if latency.length is None else str(latency.length)
        if not has_eager:
            agreement: tuple[str, ...] = _golden(entry)
        elif entry.name == EAGER:
            agreement = ("1.00", "", "")
        else:
            agreement = (_ratio(latency.speedup), _cosine(latency.cosine), _error(latency.max_error))
        rows.append((*head, tokens, *times, str(latency.calls), *agreement))
    return rows


def _total_row(entry: Entry, has_eager: bool) -> tuple[str, ...]:
    cold = entry.cold_start
    rates = [entry.sentences_per_second.get(mode) for mode in ("one at a time", "batches")]
    return (
        entry.name,
        size(entry.size),
        f"{cold['total_s']:.2f}" if cold else "",
        size(int(cold["peak_bytes"])) if cold else "",
        *("-" if rate is None else f"{rate:.0f}" if rate >= 10 else f"{rate:.2f}" for rate in rates),
        *((_ratio(entry.speedups.get("one at a time")) if entry.name != EAGER else "1.00",) if has_eager else ()),
        *_golden(entry),
    )


def _golden(entry: Entry) -> tuple[str, str]:
    measures = entry.golden.measures if entry.golden is not None else []
    if not measures:
        return "", ""
    if any(measure.nonfinite for measure in measures):
        return "NaN", "NaN"
    return _cosine(min(m.cosine for m in measures)), _error(max(m.max_error for m in measures))


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _cosine(value: float | None) -> str:
    return "" if value is None else f"{value:.7f}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _show_scores(arguments: argparse.Namespace, console: Console, report: ScoreReport) -> None:
    if arguments.json:
        print_json({"bundle": str(arguments.bundle), "reference": arguments.reference, **report.to_json()})
        return
    names = next(list(entry.scores) for entry in report.entries if entry.scores)
    columns = ("target", "precision", "size", *(name.replace("_", " ") for name in names), "same as reference")
    console.table(columns, [_score_row(entry, names) for entry in report.entries], columns[2:])
    console.say()
    whose = {EAGER: f"eager PyTorch of {arguments.reference}", None: "none (no fp32 artifact, no --reference)"}.get(
        report.compared_with, f"the fp32 {report.compared_with} artifact (give --reference for the eager model)"
    )
    console.say(f"{len(report.data)} examples of {report.data.path}. The reference: {whose}.")
    _engines(console, report.entries)


def _score_row(entry: Score, names: list[str]) -> tuple[str, ...]:
    scores = [f"{entry.scores[name]:.4f}" if name in entry.scores else "" for name in names]
    return entry.name, entry.precision, size(entry.size), *scores, "" if entry.same is None else f"{entry.same:.2%}"
