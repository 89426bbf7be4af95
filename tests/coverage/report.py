"""The coverage table: docs/coverage.md for people and docs/coverage.json for programs."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .case import TARGETS

_TITLES = {"onnx": "ONNX", "coreml": "Core ML", "executorch": "ExecuTorch"}
_HOW = """exports it with
`palmtop export`, executes each artifact on this machine (Core ML by palmtop's interpreter) and compares it with
the unpatched eager model on inputs other than the traced one. A tick means that all of that held. Misses are listed
with what the user is told.
"""


@dataclass(frozen=True)
class Table:
    """A table of pairs: the name of its results and pages, the file with its pairs, and what its page says first.

    sample: whether it is to be run as far as there is time, so that shares are of what was run.
    """

    name: str
    pairs: str
    head: str
    sample: bool = False


COVERAGE = Table(
    "coverage",
    "pairs.json",
    f"""# Coverage

`make coverage` makes this page. For each pair of architecture and task it builds a tiny checkpoint from the
configuration class (every size made small, random weights that give lively outputs), {_HOW}""",
)
OTHERS = Table(
    "coverage-others",
    "others.json",
    f"""# Coverage beyond the table

`make coverage COVERAGE=--others` makes this page: architectures and tasks that [the table](coverage.md) does not ask
for, as many as an hour of one core allows, those that are used most before others. For each pair it builds a tiny
checkpoint from the configuration class (every size made small, random weights that give lively outputs), {_HOW}""",
    sample=True,
)
PAPER = Table(
    "coverage-paper",
    "paper.json",
    f"""# The Transformers paper's table, at the shapes of its layers

`make coverage COVERAGE=--true-shapes` makes this page. For each pair of architecture and task it builds a checkpoint
of two layers that have the sizes of the configuration class's defaults, which are those of a published model (widths,
heads, positions, vocabulary; random weights that give lively outputs), {_HOW}""",
)


def counts(results: Sequence[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Of each target: how many pairs are verified, and how many were run."""
    return {
        target: (
            sum(_status(result, target) == "verified" for result in results),
            sum(target in result["targets"] for result in results),
        )
        for target in TARGETS
    }


def write_report(results: Sequence[dict[str, Any]], total: int, folder: Path, table: Table = COVERAGE) -> None:
    """Write both files; `total`: how many pairs there are, run or not."""
    folder.mkdir(exist_ok=True)
    results = [{**result, "targets": {t: _shareable(e) for t, e in result["targets"].items()}} for result in results]
    (folder / f"{table.name}.md").write_text(_page(results, total, table), encoding="utf-8")
    plain = [
        {
            "model_type": result["model_type"],
            "task": result["task"],
            "model": result.get("model"),
            "targets": {
                target: {key: entry[key] for key in ("status", "exit_code", "reason", "max_error") if key in entry}
                for target, entry in result["targets"].items()
            },
        }
        for result in results
    ]
    verified = {target: done for target, (done, _) in counts(results).items()}
    document = {"pairs": total, "verified": verified, "results": plain}
    (folder / f"{table.name}.json").write_text(
        json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _shareable(entry: dict[str, Any]) -> dict[str, Any]:
    """Without the folder that the checkpoint and its bundle were in."""
    if "reason" not in entry:
        return entry
    return {**entry, "reason": re.sub(r"\S*palmtop-coverage-[^/\s]*/(\S*?\.partial/)?", "", entry["reason"])}


def short_reason(entry: dict[str, Any]) -> str:
    """What went wrong, in a line that groups misses of one cause."""
    lines = [line.strip() for line in entry.get("reason", "").splitlines() if line.strip()]
    if not lines:
        return entry["status"]
    head = lines[0]
    if len(lines) > 1 and (head.endswith(":") or "no bundle was written" in head):
        head = f"{head} {lines[1]}"
    head = re.sub(r"`?[0-9.]+e[-+][0-9]+`?|\b\d+\.\d+\b", "#", head)
    return head.replace("|", "\\|")[:260]


def _status(result: dict[str, Any], target: str) -> str:
    return result["targets"].get(target, {}).get("status", "not run")


def _page(results: Sequence[dict[str, Any]], total: int, table: Table) -> str:
    lines = [table.head, "| | " + " | ".join(_TITLES[t] for t in TARGETS) + " |", "| --- |" + " ---: |" * len(TARGETS)]
    found = [(done, known if table.sample else total) for done, known in counts(results).values()]
    shares = [f"**{done} of {whole} ({done / max(whole, 1):.1%})**" for done, whole in found]
    lines.append(f"| {'what was run' if table.sample else 'all pairs'} | " + " | ".join(shares) + " |")
    ran = [f"{known} run, {total - known} not yet" for _, known in counts(results).values()]
    lines.append("| | " + " | ".join(ran) + " |")
    by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_task[result["task"]].append(result)
    for task, entries in sorted(by_task.items()):
        cells = [f"{done} of {known} run" for done, known in counts(entries).values()]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    lines += ["", "## Misses", ""]
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for result in results:
        for target in TARGETS:
            entry = result["targets"].get(target)
            if entry is not None and entry["status"] != "verified":
                cause = f"{entry['status']}: {short_reason(entry)}"
                groups[target, cause].append(f"{result['model_type']} ({result['task']})")
    if not groups:
        lines += ["None.", ""]
    for target in TARGETS:
        found = [(cause, pairs) for (other, cause), pairs in groups.items() if other == target]
        if found:
            lines += [f"### {_TITLES[target]}", ""]
            lines += [f"- {', '.join(pairs)}: {cause}" for cause, pairs in sorted(found, key=lambda e: -len(e[1]))]
            lines.append("")
    lines += ["## Every pair", "", "| architecture | task | " + " | ".join(_TITLES[t] for t in TARGETS) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(TARGETS))
    for result in results:
        cells = ["✓" if _status(result, t) == "verified" else _status(result, t) for t in TARGETS]
        lines.append(f"| {result['model_type']} | {result['task']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
