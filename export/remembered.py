"""What a search for a plan found out so far, on disk: an interrupted one goes on from there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..quantize.scheme import Scheme
from ..quantize.search import Rung, Table, Trial


class Cache:
    """Costs and trials of a search, by what they depend on."""

    def __init__(self, costs: Path | None = None, trials: Path | None = None):
        self._costs, self._trials = costs, trials

    @classmethod
    def of(cls, model: Any, asked: Any) -> Cache:
        """The cache of a search (`PALMTOP_CACHE` says in which folder; empty: nowhere).

        Args:
            model: what costs depend on: weights, calibration, versions. Paths count by the content of their files.
            asked: what trials depend on besides: targets, options, the bound, the metric and its data.
        """
        folder = os.environ.get("PALMTOP_CACHE", str(Path.home() / ".cache" / "palmtop"))
        if not folder:
            return cls()
        place = Path(folder) / "searches"
        return cls(place / f"{_digest(model)}.costs.json", place / f"{_digest([model, asked])}.trials.json")

    def table(self) -> Table | None:
        """The costs of all rungs, if they were measured."""
        entries = _read(self._costs)
        if not entries:
            return None
        rungs = {
            path: [Rung(Scheme(**scheme) if scheme else None, size, cost) for scheme, size, cost in rungs]
            for path, rungs in entries.items()
        }
        return Table(rungs)

    def keep_table(self, table: Table) -> None:
        rungs = {
            path: [[rung.scheme.to_json() if rung.scheme else None, rung.size, rung.cost] for rung in rungs]
            for path, rungs in table.rungs.items()
        }
        _write(self._costs, rungs)

    def trial(self, key: str) -> Trial | None:
        """The trial of a plan, by its key, without the plan's `choice`."""
        entry = _read(self._trials).get(key)
        try:
            return Trial(choice={}, **entry) if entry is not None else None
        except TypeError:  # written by another version
            return None

    def keep_trial(self, key: str, trial: Trial) -> None:
        entry = dataclasses.asdict(trial)
        del entry["choice"]
        _write(self._trials, {**_read(self._trials), key: entry})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [value.shape, str(value.dtype), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Path):
        return hashlib.sha256(value.read_bytes()).hexdigest() if value.is_file() else str(value)
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)  # type: ignore[arg-type]


def _read(path: Path | None) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError):  # not there, or damaged: then it is found out again
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path | None, content: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(content), encoding="utf-8")
        aside.replace(path)
    except OSError:
        pass  # a search without memory is a search still
