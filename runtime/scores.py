"""The task's metric of every artifact of a bundle on labelled data, and how often each decides as the reference."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .bench import Contender
from .bench_report import EAGER, Described
from .bundle import Bundle
from .errors import RequestError
from .evaluation import agreement, evaluate, predictor, steps
from .inspect import artifact_size
from .labelled import Dataset, read_data
from .pipelines import make_pipeline
from .session import Session


@dataclass
class Score(Described):
    """What one contender scores; `same` is the share of its decisions that are the reference's, None without one."""

    scores: dict[str, float] = field(default_factory=dict)
    same: float | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        scores = {name: value if math.isfinite(value) else None for name, value in self.scores.items()}
        return {**self.__dict__, "scores": scores}


@dataclass
class ScoreReport:
    """All contenders, the eager one last. `compared_with` is whose decisions `same` counts."""

    task: str
    data: Dataset
    compared_with: str | None
    entries: list[Score]

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "data": {"path": self.data.path, "kind": self.data.kind, "examples": len(self.data)},
            "compared_with": self.compared_with,
            "artifacts": [entry.to_json() for entry in self.entries if entry.name != EAGER],
            "eager": next((entry.to_json() for entry in self.entries if entry.name == EAGER), None),
        }


def score_bundle(
    bundle: Bundle,
    path: Path,
    targets: Sequence[str] | None = None,
    *,
    batch: int = 8,
    threads: int | None = None,
    eager: Callable[[], Contender] | None = None,
    start: Callable[[str, int], Callable[[], None]] | None = None,
) -> ScoreReport:
    """Score a bundle's artifacts on a data file; the eager model too when there is one.

    Decisions are compared with the eager model's; without it, with those of the first fp32 artifact.

    Args:
        targets: which artifacts; None: all that can be executed here.
        eager: loads the eager model.
        start: called with what is scored and of how many steps it consists; gives what to call after each.

    Raises:
        RequestError: no such artifact or file, a line that is no example of the task, or nothing executes a target.
    """
    start = start or (lambda what, count: lambda: None)
    manifest = bundle.manifest
    chosen = [bundle.artifact(name) for name in dict.fromkeys(targets or manifest.targets)]
    tokenizer = bundle.tokenizer()
    if tokenizer is None:
        raise RequestError("This bundle was made from a module: it has no task, so its accuracy has no definition.")
    data = read_data(path, manifest, tokenizer)
    entries: list[Score] = []
    decisions: dict[str, list[Any]] = {}

    def score(entry: Score, session: Session) -> None:
        entry.engine = session.engine
        pipeline = make_pipeline(manifest, tokenizer, session)
        began = time.perf_counter()
        result = evaluate(predictor(pipeline, data, batch), data, start(f"Scoring {entry.name}", steps(data)))
        entry.seconds = round(time.perf_counter() - began, 3)
        entry.scores, decisions[entry.name] = result.scores, result.decisions

    for artifact in chosen:
        entry = Score(artifact.target, artifact.path, artifact.precision, artifact_size(bundle, artifact))
        entries.append(entry)
        try:
            session = bundle.open_session(artifact.target, threads)
        except RequestError as error:
            if targets:
                raise
            entry.reason = str(error)
            continue
        score(entry, session)
    if eager is not None:
        contender = eager()
        artifact = contender.session.artifact
        entries.append(Score(EAGER, artifact.path, artifact.precision, contender.size, note=contender.note))
        score(entries[-1], contender.session)
    if not decisions:
        raise RequestError("Nothing on this machine executes this bundle.")
    first = next((entry.name for entry in entries if entry.precision == "fp32" and entry.name in decisions), None)
    compared_with = EAGER if eager is not None else first
    if compared_with is not None:
        for entry in entries:
            if entry.name in decisions:
                entry.same = agreement(decisions[entry.name], decisions[compared_with])
    return ScoreReport(manifest.task, data, compared_with, entries)
