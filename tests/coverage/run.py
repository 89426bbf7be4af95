"""`make coverage`: which pairs of architecture and task export and verify, in each format.

    python -m tests.coverage.run [--only bert,vit] [--tasks fill-mask] [--targets onnx] [--failed] [--again]
    python -m tests.coverage.run --true-shapes      the Transformers paper's table, with layers of the published shapes
    python -m tests.coverage.run --others           pairs that are in neither table

Results lie in build/coverage (or build/coverage-paper, build/coverage-others), one file a pair, and stay there: an
interrupted run goes on where it was. From all of them come docs/coverage.md and docs/coverage.json (or those of the
other names).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .case import SECONDS, TARGETS
from .report import COVERAGE, OTHERS, PAPER, Table, counts, write_report

ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """A process that has imported everything and forks for each pair."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def run(self, asked: dict[str, Any]) -> None:
        """Make the result of a pair, whatever becomes of the process."""
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, "-m", "tests.coverage.case", "--serve"]
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        if not self.process.stdout.readline():
            raise RuntimeError("The process that runs the pairs ended.")

    def close(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()


def main() -> int:
    options = _options()
    table = PAPER if options.true_shapes else OTHERS if options.others else COVERAGE
    known = options.pairs or Path(__file__).with_name(table.pairs)
    pairs = dict(json.loads(known.read_text(encoding="utf-8"))["pairs"].items())
    place(table, "", "").parent.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    chosen = [
        (kind, task)
        for kind, task in _by_breadth(pairs)
        if (not options.only or kind in options.only) and (not options.tasks or task in options.tasks)
    ]
    todo = [pair for pair in chosen if _wanted(place(table, *pair), options)]
    console.print(f"{len(chosen)} pairs, {len(todo)} to run, {options.jobs} at a time")
    local = threading.local()
    workers: list[Worker] = []

    def one(pair: tuple[str, str]) -> tuple[tuple[str, str], dict[str, Any]]:
        if not hasattr(local, "worker"):
            local.worker = Worker()
            workers.append(local.worker)
        path = place(table, *pair)
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        path.unlink(missing_ok=True)
        asked = {"model_type": pair[0], "task": pair[1], "targets": list(options.targets)}
        asked["true_shapes"] = options.true_shapes
        local.worker.run({**asked, "path": str(path), "seconds": options.seconds})
        result = json.loads(path.read_text(encoding="utf-8"))
        result["commit"] = commit
        if before is not None:
            result["targets"] = {**before["targets"], **result["targets"]}
        path.write_text(json.dumps(result, indent=1), encoding="utf-8")
        return pair, result

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(options.jobs) as pool:
        bar = progress.add_task("coverage", total=len(todo))
        for (kind, task), result in pool.map(one, todo):
            missed = [
                f"{target}: {entry['status']}"
                for target, entry in result["targets"].items()
                if entry["status"] != "verified"
            ]
            if missed:
                progress.console.print(f"[yellow]{kind} {task}[/yellow] {', '.join(missed)}", highlight=False)
            progress.update(bar, advance=1, description=f"{kind} {task}")
    for worker in workers:
        worker.close()
    everything = [(kind, task) for kind, tasks in pairs.items() for task in tasks]
    files = [place(table, *pair) for pair in everything]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in files if path.is_file()]
    if options.report:
        write_report(results, len(everything), ROOT / "docs", table)
    for target, (done, known) in counts(results).items():
        share = done / len(everything) if everything else 0
        console.print(f"{target}: {done} of {len(everything)} verified ({share:.1%}), {known} run")
    return 0


def _by_breadth(pairs: dict[str, list[str]]) -> list[tuple[str, str]]:
    """One task of every type, then a second of each, ...: a run that is broken off has seen something of all."""
    placed = [(index, kind, task) for kind, tasks in pairs.items() for index, task in enumerate(tasks)]
    return [(kind, task) for _, kind, task in sorted(placed, key=lambda entry: entry[0])]


def place(table: Table, model_type: str, task: str) -> Path:
    """Where the result of a pair lies."""
    return ROOT / "build" / table.name / f"{model_type}--{task}.json"


def _wanted(path: Path, options: argparse.Namespace) -> bool:
    if options.again or not path.is_file():
        return True
    known = json.loads(path.read_text(encoding="utf-8"))["targets"]
    if options.failed:
        return any(known.get(target, {}).get("status") != "verified" for target in options.targets)
    return any(target not in known for target in options.targets)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make coverage", description=__doc__.split("\n")[0])

    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    parser.add_argument("--pairs", type=Path, help="a JSON file with `pairs` (default: the table's)")
    parser.add_argument("--true-shapes", action="store_true", help="two layers of the published shapes, for few pairs")
    parser.add_argument("--others", action="store_true", help="pairs outside of the table")
    parser.add_argument("--only", type=names, default=[], help="model types, with commas")
    parser.add_argument("--tasks", type=names, default=[], help="tasks, with commas")
    parser.add_argument("--targets", type=names, default=list(TARGETS), help="formats, with commas")
    parser.add_argument("--failed", action="store_true", help="run again what was not verified")
    parser.add_argument("--again", action="store_true", help="run again what has a result")
    parser.add_argument("--jobs", type=int, default=2, help="pairs at a time")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="time limit of a pair")
    parser.add_argument("--no-report", dest="report", action="store_false", help="leave docs/coverage.* as they are")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
