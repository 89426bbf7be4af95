"""How long exporting takes: MiniLM to each format, in new processes, beside what a user would export with instead.

    python benchmarks/export_time.py [--rounds 3] [--quick] [--json]        three minutes a round

The contenders take turns; a ratio is the median of those within a round. palmtop's times are of the whole command, with
the reference, the tokenizer, verification and the bundle; optimum's with its own validation; the others only convert.
The `.pte` files are compared too. Figures of processor time tell what a busy machine hides.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures as shared

shared.one_thread()  # before numpy is imported; the exports themselves may use every core

import embedders  # noqa: E402
import numpy as np  # noqa: E402
import peer_exports  # noqa: E402
import peers  # noqa: E402
import plots  # noqa: E402
import report  # noqa: E402
from embedders import Embedder, Feeds  # noqa: E402
from figures import INHERITED, ROOT, Bound, Figures, Section, counter, folder, publish, say  # noqa: E402

# Of palmtop to each format: the contender, and how many times as fast palmtop shall be.
_LEAST = {"onnx": ("optimum-cli", 1.0), "executorch": ("transformers.exporters", 3.0), "coreml": ("coremltools", 2.0)}
_MOST_SECONDS = 30.0
_LENGTHS = (16, 128)
_SENTENCES = 20
_NOTE = """MiniLM (22 M parameters), fp32, dynamic lengths. Each export is a process of its own; times are medians, in
seconds, ratios medians of those within a round. palmtop's are of the whole command: reference, tokenizer, artifact,
verification, bundle. `optimum-cli` validates its file; `transformers.exporters` (ExecuTorch, XNNPACK) and `coremltools`
(`torch.export`, `run_decompositions`, `coremltools.convert`) convert and save, no more."""


@dataclass(frozen=True)
class Took:
    """Seconds of the clock and of processors, those of child processes included."""

    seconds: float
    processor: float


def timed(command: list[str | Path]) -> Took:
    """Run a command to its end.

    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    began = time.perf_counter()
    before = os.times()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=INHERITED, cwd=ROOT, check=False)
    seconds, after = time.perf_counter() - began, os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Took(seconds, used)


def commands(checkpoint: Path, work: Path) -> dict[str, list[str | Path]]:
    """By name of the contender, what is run."""
    export: list[str | Path] = [sys.executable, "-m", "palmtop.export", "export", checkpoint, "--force", "--json"]
    peer: list[str | Path] = [sys.executable, ROOT / "benchmarks" / "peer_exports.py"]
    optimum = peers.python("optimum").parent / "optimum-cli"
    found: dict[str, list[str | Path]] = {}
    for target, (name, _) in _LEAST.items():
        found[f"palmtop, {target}"] = [*export, "-o", work / f"{target}.bundle", "--to", target]
        found[name] = [*peer, target, checkpoint, work / name]
    found["optimum-cli"] = [optimum, "export", "onnx", "--task", "feature-extraction", "--model", checkpoint]
    found["optimum-cli"] += [work / "optimum-cli"]
    found["palmtop, all three"] = [*export, "-o", work / "all.bundle"]
    return found


def measure(checkpoint: Path, work: Path, rounds: int, figures: Figures) -> None:
    """Export in turns."""
    contenders = commands(checkpoint, work)
    advance = counter(f"Exporting: {rounds} rounds of", rounds * len(contenders))
    times: dict[str, list[Took]] = {name: [] for name in contenders}
    for turn in range(rounds):
        names = list(contenders)
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            shutil.rmtree(work / name, ignore_errors=True)
            times[name].append(timed(contenders[name]))
            advance()
    rows, bars = [], {}
    for name, took in times.items():
        seconds, used = (statistics.median(getattr(one, part) for one in took) for part in ("seconds", "processor"))
        rows.append([name, f"{seconds:.1f}", f"{used:.1f}"])
        bars[name] = [seconds, used]
        figures.raw[name] = {"seconds": [one.seconds for one in took], "processor": [one.processor for one in took]}
    figures.tables["Seconds"] = ["export", "seconds", "processor seconds"], rows
    title = "Exporting MiniLM, in a new process"
    figures.plots[title] = plots.bars(title, ["seconds", "processor seconds"], bars)
    for target, (name, least) in _LEAST.items():
        pairs = list(zip(times[name], times[f"palmtop, {target}"], strict=True))
        ratio = statistics.median(theirs.seconds / ours.seconds for theirs, ours in pairs)
        figures.bounds.append(Bound(f"{target}: times as fast as {name}", ratio, least, least=True))
    longest = statistics.median(one.seconds for one in times["palmtop, all three"])
    figures.bounds.append(Bound("all three formats with verification, seconds", longest, _MOST_SECONDS))


def compare(checkpoint: Path, work: Path, rounds: int, figures: Figures) -> None:
    """Is palmtop's `.pte` as good as that of transformers.exporters? Size, delegates, loading, agreement, speed.

    Both are called as they are, without palmtop's session.
    """
    from palmtop.runtime.backends.executorch_file import describe
    from palmtop.runtime.bundle import Bundle

    bundle = Bundle.open(work / "executorch.bundle")
    mine = bundle.manifest.artifacts[0]
    files = {
        "palmtop": (bundle.root / mine.path, [spec.name for spec in mine.inputs]),
        "transformers.exporters": (work / "transformers.exporters" / "model.pte", list(peer_exports.INPUTS)),
    }
    loading = {name: _loading(path) for name, (path, _) in files.items()}
    eager = embedders.eager(checkpoint)
    ours, theirs = (_pte(name, *file) for name, file in files.items())
    texts = (ROOT / "export" / "calibration.txt").read_text(encoding="utf-8").splitlines()[:_SENTENCES]
    calls = embedders.encode(checkpoint, texts)
    expected = [eager.read(eager.run(feeds), feeds) for feeds in calls]
    times = _in_turns((eager, ours, theirs), rounds)
    rows = []
    agreed = {}
    counts = {}
    for entry in (ours, theirs):
        method = describe(files[entry.name][0])["methods"]["forward"]
        agreed[entry.name] = embedders.agreement(entry, calls, expected)
        counts[entry.name] = len(method["delegates"])
        row = [
            entry.name,
            f"{entry.size / 1e6:.2f}",
            str(len(method["delegates"])),
            str(sum(method["kernels"].values())),
            f"{loading[entry.name]['seconds']:.2f}",
            f"{loading[entry.name]['bytes'] / 1e6:.0f}",
        ]
        row += [f"{agreed[entry.name].pooled:.6f}", f"{agreed[entry.name].token:.6f}"]
        rows.append([*row, *(f"{np.median(times[entry.name][length]):.2f}" for length in _LENGTHS)])
    head = [".pte", "MB", "delegates", "operations outside of them", "seconds to load", "MB of memory then"]
    head += ["pooled cosine", "token cosine"]
    figures.tables["The files for ExecuTorch"] = [*head, *(f"ms, {length} tokens" for length in _LENGTHS)], rows
    medians = {name: {length: float(np.median(took[length])) for length in _LENGTHS} for name, took in times.items()}
    figures.raw["pte"] = {
        "ms": medians,
        "delegates": counts,
        "bytes": {"palmtop": ours.size, theirs.name: theirs.size},
        "loading": loading,
    }
    figures.bounds += [
        Bound("executorch: bytes, of those of transformers.exporters", ours.size / theirs.size, 1.01),
        Bound("executorch: delegates", counts["palmtop"], counts[theirs.name]),
        Bound("executorch: token cosine with eager", agreed["palmtop"].token, 0.99999, least=True),
    ]
    for length in _LENGTHS:
        for entry in (theirs, eager):
            ratio = float(np.median(np.divide(times[entry.name][length], times["palmtop"][length])))
            name = "eager PyTorch" if entry is eager else entry.name
            figures.bounds.append(
                Bound(f"executorch, {length} tokens: times as fast as {name}", ratio, 1.0, least=True)
            )


def _in_turns(entries: Sequence[Embedder], rounds: int) -> dict[str, dict[int, list[float]]]:
    """Milliseconds of each call, by contender and length.

    Whoever comes after eager finds its own weights gone from the caches: all orders take turns.
    """
    times: dict[str, dict[int, list[float]]] = {entry.name: {} for entry in entries}
    for length in _LENGTHS:
        feeds = embedders.feeds_of([list(range(1000, 1000 + length))])
        orders = itertools.islice(itertools.cycle(itertools.permutations(entries)), rounds)
        for entry in itertools.chain.from_iterable(orders):
            began = time.perf_counter()
            entry.run(feeds)
            times[entry.name].setdefault(length, []).append(1e3 * (time.perf_counter() - began))
    return times


# Printed by a process of its own: seconds, and bytes of memory that loading took.
_LOAD = """
import json, resource, sys, time
import torch
from executorch.extension.pybindings import _portable_lib as library
library._unsafe_reset_threadpool(1)
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, began = peak(), time.perf_counter()
program = library._load_program(sys.argv[1])
method = program.load_method("forward")
print(json.dumps({"seconds": time.perf_counter() - began, "bytes": peak() - before}))
"""


def _loading(path: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path)], capture_output=True, text=True, env=INHERITED, cwd=ROOT, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _pte(name: str, path: Path, inputs: Sequence[str]) -> Embedder:
    """A `.pte` whose first output is the token states, on one thread. `inputs`: their names, in the file's order."""
    import torch
    from executorch.extension.pybindings import _portable_lib as library

    if library._threadpool_get_thread_count() != 1:
        library._unsafe_reset_threadpool(1)
    program = library._load_program(str(path))
    method = program.load_method("forward")

    def run(feeds: Feeds) -> Any:
        return method([torch.from_numpy(feeds[name]) for name in inputs])

    def read(result: Any, feeds: Feeds) -> tuple[np.ndarray, np.ndarray]:
        states = result[0].numpy()
        return states, embedders.mean_pooled(states, feeds)

    run.keep = program  # type: ignore[attr-defined]
    return Embedder(name, path.stat().st_size, run, read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, to see that it runs; writes no page")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout; writes no page")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep what is exported there")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    figures = Figures(versions=report.versions("torch", "transformers", "onnx", "coremltools", "executorch"))
    with folder(options.work) as work:
        measure(embedders.minilm(), work, rounds, figures)
        say("Comparing the files for ExecuTorch")
        compare(embedders.minilm(), work, 20 if options.quick else 100, figures)
    section = Section("export-time", "Export time", "python benchmarks/export_time.py", _NOTE)
    publish(section, figures, as_json=options.json, write=not options.quick)


if __name__ == "__main__":
    main()
