"""What was measured of a bundle: by artifact, and all of it as JSON."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .reports import ArtifactReport

EAGER = "eager"


@dataclass(frozen=True)
class Settings:
    """What to measure.

    `lengths`: in tokens; None: a few that the artifact takes. `batch`: rows of a batch. `repeats`: calls of each
    contender; None: as many as `seconds` allow, each contender having that long for each figure. `cold_starts`:
    fresh processes (their median counts).
    """

    lengths: tuple[int, ...] | None = None
    batch: int = 8
    threads: int = 1
    repeats: int | None = None
    seconds: float = 2.0
    cold_starts: int = 3


@dataclass
class Latency:
    """One call on one row of `length` tokens (None: the golden inputs of a model without text), in milliseconds.

    `speedup`: the median over all rounds of the eager model's time by this one's. `cosine`, `max_error`: of these very
    outputs with the eager model's, None without it.
    """

    length: int | None
    calls: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    speedup: float | None = None
    cosine: float | None = None
    max_error: float | None = None


@dataclass
class Described:
    """A contender of a table: its bytes, what executes it, what a reader must know, or why it cannot be executed."""

    name: str
    path: str
    precision: str
    size: int
    engine: str | None = None
    note: str | None = None
    reason: str | None = None


@dataclass
class Entry(Described):
    """What was measured of one contender. `golden` is its agreement with the golden vectors, in this run."""

    latency: list[Latency] = field(default_factory=list)
    sentences_per_second: dict[str, float | None] = field(default_factory=dict)
    speedups: dict[str, float | None] = field(default_factory=dict)
    cold_start: dict[str, float] | None = None
    golden: ArtifactReport | None = None
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        golden = self.golden
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Described)}
        return {
            **values,
            "latency": [_significant(dataclasses.asdict(entry)) for entry in self.latency],
            "sentences_per_second": _significant(self.sentences_per_second),
            "speedup": _significant(self.speedups),
            "cold_start": _significant(self.cold_start or {}) or None,
            "agreement": None
            if golden is None
            else {
                "with": "golden vectors",
                "status": golden.status,
                "outputs": [measure.to_json() for measure in golden.measures],
                "decisions": golden.agreement.to_json() if golden.agreement is not None else None,
            },
            "problems": self.problems,
        }


@dataclass
class BenchReport:
    """All contenders, the eager one last."""

    task: str
    settings: Settings
    entries: list[Entry]

    @property
    def problems(self) -> list[str]:
        return [f"{entry.path}: {problem}" for entry in self.entries for problem in entry.problems]

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "machine": machine(),
            "settings": dataclasses.asdict(self.settings),
            "artifacts": [entry.to_json() for entry in self.entries if entry.name != EAGER],
            "eager": next((entry.to_json() for entry in self.entries if entry.name == EAGER), None),
        }


def _significant(values: dict[str, Any]) -> dict[str, Any]:
    """Four digits of each float (of a cosine seven places): more is noise. NaN and infinity become None, for JSON."""
    rounded: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, float):
            short = round(value, 7) if key == "cosine" else float(f"{value:.4g}")
            rounded[key] = short if math.isfinite(value) else None
        else:
            rounded[key] = value
    return rounded


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return {"system": platform.system(), "architecture": platform.machine(), "cpu": name, "cpus": os.cpu_count()}
