"""From the start of a process to its first answer, and what of that is importing.

    python benchmarks/cold_start.py [--quick] [--json]      about five minutes, of which exports are three

Each process loads MiniLM and gives the vector of one sentence; contenders take turns. Bounds are printed with whether
they are met.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import figures as shared

shared.one_thread()  # before numpy is imported

import embedders  # noqa: E402
import numpy as np  # noqa: E402
import pipelines  # noqa: E402
import plots  # noqa: E402
import report  # noqa: E402
from figures import Bound, Figures  # noqa: E402
from turns import Contenders, Group, Text  # noqa: E402

SENTENCE = "How long does it take from a standstill to the first answer?"
ROUNDS, QUICK_ROUNDS = 7, 2
TASK = "feature-extraction"
# What runs in a process of its own: milliseconds of three imports, one after the other. The answer afterwards must
# import nothing more of palmtop.
_IMPORTS = """
import sys, time
marks = [time.perf_counter()]
import numpy, onnxruntime
marks.append(time.perf_counter())
import tokenizers
marks.append(time.perf_counter())
import palmtop.runtime
marks.append(time.perf_counter())
import palmtop.runtime.backends.onnx, palmtop.runtime.bundle
import palmtop.runtime.pipelines.sentence_similarity
marks.append(time.perf_counter())
before = set(sys.modules)
palmtop.runtime.load(sys.argv[1], target="onnx", threads=1)(sys.argv[2])
more = [name for name in set(sys.modules) - before if name.startswith("palmtop")]
assert not more, more
print(*(1e3 * (after - before) for before, after in zip(marks, marks[1:])))
"""
IMPORTED = ("numpy and onnxruntime", "tokenizers", "palmtop.runtime", "the rest that an answer needs")


def first_answers(groups: Sequence[Group], rounds: int) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Seconds from the start of a process to its first answer, each round; and that answer. By contender."""
    text = [Text(SENTENCE, 0)]
    seconds: dict[str, list[float]] = {name: [] for group in groups for name in group.specifications}
    answers: dict[str, np.ndarray] = {}
    advance = shared.counter(f"Rounds of {len(seconds)} cold starts", rounds + 1)
    for number in range(rounds + 1):  # the first brings files into memory, for all of them
        for group in groups:
            for name, specification in group.specifications.items():
                began = time.perf_counter()
                with Contenders.start([Group(group.python, {name: specification})]) as contenders:
                    _, rows = contenders.ask(name, text, None)
                    took = time.perf_counter() - began
                answers[name] = rows[0]
                if number:
                    seconds[name].append(took)
        advance()
    return seconds, answers


def imports(bundle: Path, rounds: int) -> np.ndarray:
    """Milliseconds that `IMPORTED` take, one after the other: (4,) medians over processes."""
    command = [sys.executable, "-c", _IMPORTS, str(bundle), SENTENCE]
    found = []
    with tempfile.TemporaryDirectory() as elsewhere:  # nothing lies there that could be imported instead
        for _ in range(rounds + 1):
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=elsewhere)
            found.append([float(part) for part in done.stdout.split()])
    return np.median(np.array(found[1:]), axis=0)


def show(seconds: dict[str, list[float]], answers: dict[str, np.ndarray], figures: Figures) -> None:
    """The table of first answers, and their bounds."""
    eager = statistics.median(seconds[pipelines.EAGER])
    rows = []
    for name, took in seconds.items():
        middle = statistics.median(took)
        cosine = float(embedders.cosines(answers[name][None], answers[pipelines.EAGER][None])[0])
        rows.append([name, f"{middle:.2f}", f"{min(took):.2f}", f"{eager / middle:.1f}", f"{cosine:.5f}"])
        figures.raw.setdefault("first answer", {})[name] = {"seconds": took, "cosine": cosine}
        if name.startswith("palmtop onnx"):
            figures.bounds.append(
                Bound(f"{name}: first answer as early as {pipelines.EAGER}'s", eager / middle, 8.0, least=True)
            )
            figures.bounds.append(Bound(f"{name}: cosine of that answer", cosine, pipelines.SAME, least=True))
    head = ["pipeline", "seconds, median", "least", f"x {pipelines.EAGER}", "cosine"]
    figures.tables["Start of a process to its first answer"] = head, rows
    bars = {name: [statistics.median(took)] for name, took in seconds.items()}
    title = "Start of a process to its first answer, seconds"
    figures.plots[title] = plots.bars(title, ["median"], bars)


def show_imports(took: np.ndarray, figures: Figures) -> None:
    """The table of imports, and their bounds."""
    rows = [
        [name, f"{value:.0f}", f"{100 * value / took.sum():.0f} %"] for name, value in zip(IMPORTED, took, strict=True)
    ]
    figures.tables["Imports before an answer, one after the other"] = ["import", "ms", "share"], rows
    figures.raw["imports_ms"] = dict(zip(IMPORTED, took.tolist(), strict=True))
    figures.bounds.append(Bound("import palmtop.runtime and all that its answer needs, ms", float(took.sum()), 150.0))
    share = float(took[0] / took.sum())
    figures.bounds.append(Bound("numpy and onnxruntime, share of those imports", share, 0.5, least=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few processes; writes no page")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout; writes no page")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep bundles there, and take those that are there")
    options = parser.parse_args()
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    figures = Figures(versions=report.versions("torch", "transformers", "onnxruntime", "tokenizers", "executorch"))
    minilm = embedders.minilm()
    with shared.folder(options.work) as work:
        bundles = pipelines.bundles_of("minilm", minilm, work)
        groups, versions = pipelines.groups(minilm, TASK, bundles, work, compiled=False)
        figures.versions += f"; in optimum's environment: {versions}"
        chosen = [Group(group.python, _few(group.specifications)) for group in groups]
        show(*first_answers(chosen, rounds), figures)
        show_imports(imports(bundles["fp32"], rounds), figures)
    section = shared.Section("cold-start", "Cold start", "python benchmarks/cold_start.py", _NOTE)
    shared.publish(section, figures, as_json=options.json, write=not options.quick)
    return 0


def _few(specifications: dict) -> dict:
    """Of optimum's graphs, one of each precision: what they compute hardly matters here."""
    kept = ("optimum fp32 O2", "optimum int8 avx2, O2")
    return {name: entry for name, entry in specifications.items() if not name.startswith("optimum") or name in kept}


_NOTE = (
    "A new process imports, loads MiniLM (all-MiniLM-L6-v2) and gives the vector of one sentence; the clock runs from "
    "before its start until the answer is here. Files are in the page cache. ExecuTorch's Python runtime imports "
    "torch, which an app on a phone does not. Imports are timed within a process, without the start of Python itself."
)


if __name__ == "__main__":
    sys.exit(main())
