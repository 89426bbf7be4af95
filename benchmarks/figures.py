"""What benchmarks share: figures with their bounds, a page of them, progress, and bundles to measure.

Imported before numpy, so that `one_thread` comes in time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import report

ROOT = Path(__file__).resolve().parent.parent
INTENTS = ROOT / "sample_apps" / "checkpoints" / "intents"
# What exports run in: they may use every core.
INHERITED = dict(os.environ)


def one_thread() -> None:
    """Give every numeric library that is imported from now on, here and in processes started here, one thread."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


@dataclass(frozen=True)
class Bound:
    """A figure to reach. `least`: it is the least, not the most."""

    what: str
    value: float
    bound: float
    least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.least else self.value <= self.bound

    def row(self) -> list[str]:
        sign = "≥" if self.least else "≤"
        value = f"{self.value:.4g}" if self.value < 0.9 else f"{self.value:.4f}"
        return [self.what, f"{sign} {self.bound:g}", value, "met" if self.met else "**missed**"]

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "met": self.met}


@dataclass
class Figures:
    """What was measured: tables by title (head, rows), plots (SVG) by title, bounds, and all of it as JSON."""

    tables: dict[str, tuple[list[str], list[list[str]]]] = field(default_factory=dict)
    plots: dict[str, str] = field(default_factory=dict)
    bounds: list[Bound] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    versions: str = ""

    def to_json(self) -> dict[str, Any]:
        document = {"machine": report.machine(), "versions": self.versions, **self.raw}
        return {**document, "bounds": [bound.to_json() for bound in self.bounds]}


@dataclass(frozen=True)
class Section:
    """A section of docs/benchmarks.md. `name` marks it there; `note` says what was measured, and how."""

    name: str
    title: str
    command: str
    note: str = ""


def publish(section: Section, figures: Figures, *, as_json: bool, write: bool) -> None:
    """Print figures: as JSON, or as their section, which with `write` takes its place in docs/benchmarks.md."""
    if as_json:
        print(json.dumps(figures.to_json(), indent=2))
        return
    text = _page(section, figures)
    print(text)
    if write:
        for number, (title, svg) in enumerate(figures.plots.items()):
            file = report.PAGE.with_name(f"{section.name}{f'-{number + 1}' if number else ''}.svg")
            file.write_text(svg, encoding="utf-8")
            text += f"\n\n![{title}]({file.name})"
        report.write_section(section.name, text)


def _page(section: Section, figures: Figures) -> str:
    """The figures in Markdown."""
    head = [f"## {section.title}", f"`{section.command}`", f"{figures.versions}. {report.machine()}."]
    parts = [*head, section.note]
    for name, (head, rows) in figures.tables.items():
        parts += [f"### {name}", report.table(head, rows)]
    missed = sum(not bound.met for bound in figures.bounds)
    parts.append(f"### Bounds: {len(figures.bounds) - missed} met, {missed} missed")
    parts.append(report.table(["figure", "bound", "measured", ""], [bound.row() for bound in figures.bounds]))
    return "\n\n".join(part for part in parts if part)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def counter(what: str, steps: int) -> Callable[[], None]:
    """Progress on stderr: a line that is written over on a terminal, else one line at the start."""
    terminal, done, began = sys.stderr.isatty(), 0, time.perf_counter()
    if not terminal:
        say(f"{what} ({steps})")

    def advance() -> None:
        nonlocal done
        done += 1
        if terminal:
            end = "\n" if done >= steps else ""
            print(f"\r{what}: {done} of {steps}, {time.perf_counter() - began:.0f} s ", end=end, file=sys.stderr)

    return advance


def exported(checkpoint: Path, place: Path, *options: str) -> Any:
    """A bundle of a checkpoint, by the command that users run; one that stands there already is taken as it is.

    Raises:
        SystemExit: the export failed.
    """
    from palmtop.runtime.bundle import Bundle

    if not place.exists():
        command = [sys.executable, "-m", "palmtop.export", "export", str(checkpoint), "-o", str(place), *options]
        say(f"export {place.name} {' '.join(options)}")
        done = subprocess.run(command, env={**INHERITED, "PALMTOP_CACHE": ""}, check=False, stdout=sys.stderr)
        if done.returncode:
            raise SystemExit(f"The export of {place.name} failed (exit code {done.returncode}).")
    return Bundle.open(place)


@contextlib.contextmanager
def folder(kept: Path | None) -> Iterator[Path]:
    """The folder to work in: `kept`, which is made, or one that is removed afterwards."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
