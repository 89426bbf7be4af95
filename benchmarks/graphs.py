"""What the exported graph holds, and what a call of it costs, beside optimum's graphs of the same checkpoint.

    python benchmarks/graphs.py [--quick] [--json]      about three minutes

MiniLM in fp32, one thread. Graphs run in the same ONNX Runtime with the same session options, in turns. Bounds are
printed with whether they are met.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import figures as shared

shared.one_thread()  # before numpy is imported

import embedders  # noqa: E402
import graph_sizes  # noqa: E402
import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
from embedders import Feeds  # noqa: E402
from figures import Bound, Figures  # noqa: E402
from palmtop.runtime.backends.onnx_file import operations  # noqa: E402

LENGTHS = (16, 128)
OURS, PLAIN = "palmtop", "optimum"
LEAST = 1.15  # times as fast as optimum's graph
# Sessions of each graph, one after the other: the luck of where a session's memory lies makes one faster than another.
SESSIONS, QUICK_SESSIONS = 5, 1
ROUNDS, QUICK_ROUNDS = 60, 10
SENTENCES = 40
# What ONNX Runtime's profile calls the operations that hold a model's products; attention holds two of them.
_PRODUCTS = ("Gemm", "MatMul", "FusedMatMul", "FusedGemm")
_ATTENTION = ("Attention", "MultiHeadAttention", "Softmax")
_WEIGHTS, _MIXING = "products with weights", "attention"
_KINDS = (_WEIGHTS, _MIXING, "activation", "layer norms", "additions", "the rest")
# Operations that are there to compute sizes, not numbers.
_SHAPES = ("Shape", "Size", "ConstantOfShape", "Unsqueeze", "Squeeze", "Concat", "Slice", "Expand", "Range")
_BARE = "palmtop, were all but products and attention free"


def graphs_of(checkpoint: Path, work: Path) -> dict[str, Path]:
    """The files: palmtop's, and what `optimum-cli export onnx` gives, as it is and with its optimisations."""
    bundle = work / "minilm-graphs.bundle"
    shared.exported(checkpoint, bundle, "--to", "onnx")
    found = {OURS: bundle / "onnx" / "model.onnx"}
    command = [peers.python("optimum").parent / "optimum-cli", "export", "onnx", "--model", checkpoint]
    # Token states, as palmtop's artifact gives them; left alone the checkpoint's pooling is tried for, and not found.
    command += ["--task", "feature-extraction", "--library", "transformers"]
    for level in ("", "O2", "O3"):
        folder = work / f"optimum-cli{level}"
        found[f"{PLAIN} -{level}" if level else PLAIN] = folder / "model.onnx"
        if not (folder / "model.onnx").exists():
            shared.say(f"optimum-cli export onnx {level}")
            more = ["--optimize", level] if level else []
            asked = list(map(str, [*command, *more, folder]))
            done = subprocess.run(asked, env=shared.INHERITED, cwd=work, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"optimum-cli failed:\n{done.stderr[-2000:]}")
    return found


# --- times --------------------------------------------------------------------------------------------------------


def times(graphs: Mapping[str, Path], calls: Mapping[int, Feeds], quick: bool) -> dict[int, dict[str, np.ndarray]]:
    """Milliseconds of calls, by length and graph, those of one round in the same place.

    In a round each graph is called twice, and the second call counts: what the one before left in the caches does not.
    """
    sessions, rounds = (QUICK_SESSIONS, QUICK_ROUNDS) if quick else (SESSIONS, ROUNDS)
    took: dict[int, dict[str, list[float]]] = {length: {name: [] for name in graphs} for length in calls}
    shuffle = np.random.default_rng(0).permutation
    advance = shared.counter(f"Calls: sessions of {len(graphs)} graphs", sessions)
    for _ in range(sessions):
        entries = [embedders.graph(path, name) for name, path in graphs.items()]
        for length, feeds in calls.items():
            for _ in range(rounds):
                for turn in shuffle(len(entries)):
                    entries[turn].run(feeds)
                    began = time.perf_counter()
                    entries[turn].run(feeds)
                    took[length][entries[turn].name].append(1e3 * (time.perf_counter() - began))
        advance()
    return {length: {name: np.array(each) for name, each in found.items()} for length, found in took.items()}


def compare(graphs: Mapping[str, Path], checkpoint: Path, quick: bool, figures: Figures) -> None:
    """What a call takes, and how far token states are from eager PyTorch's, on sentences and on what is timed."""
    text = (shared.ROOT / "export" / "calibration.txt").read_text(encoding="utf-8").splitlines()
    calls = {length: embedders.feeds_of([list(range(1000, 1000 + length))]) for length in LENGTHS}
    judged = [*calls.values(), *embedders.encode(checkpoint, text[: 5 if quick else SENTENCES])]
    eager = embedders.eager(checkpoint)
    expected = [eager.read(eager.run(feeds), feeds) for feeds in judged]
    agreed, apart = {}, {}
    for name, path in graphs.items():
        entry = embedders.graph(path, name)
        agreed[name] = embedders.agreement(entry, judged, expected)
        apart[name] = max(
            float(np.abs(entry.read(entry.run(feeds), feeds)[0] - states).max())
            for feeds, (states, _) in zip(judged, expected, strict=True)
        )
    found = times(graphs, calls, quick)
    ratios = {
        length: {name: float(np.median(each[name] / each[OURS])) for name in graphs} for length, each in found.items()
    }
    rows = []
    for name in graphs:
        cells = [cell for n in LENGTHS for cell in (f"{np.median(found[n][name]):.2f}", f"{ratios[n][name]:.3f}")]
        rows.append([name, *cells, f"{agreed[name].token:.7f}", f"{apart[name]:.1e}"])
    head = ["graph", *(cell for n in LENGTHS for cell in (f"{n} tokens, ms", "times palmtop's"))]
    figures.tables["A call"] = [*head, "token cosine", "largest difference"], rows
    for length in LENGTHS:
        what = f"{length} tokens: times as fast as optimum's graph"
        figures.bounds.append(Bound(what, ratios[length][PLAIN], LEAST, least=True))
    figures.bounds.append(Bound("token cosine with eager PyTorch", agreed[OURS].token, 0.999999, least=True))
    figures.raw["calls"] = {
        "ms": {n: {name: float(np.median(each)) for name, each in found[n].items()} for n in LENGTHS},
        "ratios": ratios,
        "token_cosine": {name: each.token for name, each in agreed.items()},
        "largest_difference": apart,
    }


# --- where the time goes ------------------------------------------------------------------------------------------


def profile(path: Path, feeds: Feeds, calls: int) -> dict[str, float]:
    """Microseconds that a call spends in operations of each of `_KINDS`, from ONNX Runtime's own profile."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        mine = {entry.name: feeds[entry.name] for entry in session.get_inputs()}
        for _ in range(calls):
            session.run(["last_hidden_state"], mine)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    took: dict[tuple[str, str], list[int]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            took.setdefault((event["name"], _kind(event["args"])), []).append(event["dur"])
    found = dict.fromkeys(_KINDS, 0.0)
    for (_, kind), each in took.items():
        found[kind] += float(np.median(each[calls // 4 :]))
    return found


def _kind(event: Mapping) -> str:
    name = event["op_name"]
    if name in _ATTENTION:
        return _MIXING
    if name in _PRODUCTS:
        # Of products of two activations, which are attention's, the profile gives two shapes of more than two axes.
        shapes = [next(iter(entry.values())) for entry in event.get("input_type_shape", [])][:2]
        return _MIXING if len(shapes) == 2 and min(map(len, shapes)) > 2 else _WEIGHTS
    if "Gelu" in name:
        return "activation"
    if "LayerNormalization" in name:
        return "layer norms"
    return "additions" if name == "Add" else "the rest"


def explain(graphs: Mapping[str, Path], quick: bool, figures: Figures) -> None:
    """A table for each length: what operations take, and how much faster a call could be with the products alone."""
    for length in LENGTHS:
        feeds = embedders.feeds_of([list(range(1000, 1000 + length))])
        found = {name: profile(path, feeds, 20 if quick else 200) for name, path in graphs.items()}
        rows = []
        for name, each in found.items():
            whole = sum(each.values())
            shares = [f"{each[kind]:.0f}" for kind in _KINDS]
            rows.append([name, *shares, f"{whole:.0f}", f"{100 * each[_WEIGHTS] / whole:.0f} %"])
        bare = [found[OURS][kind] for kind in (_WEIGHTS, _MIXING)]
        rows.append([_BARE, *(f"{value:.0f}" for value in bare), *["0"] * (len(_KINDS) - 2), f"{sum(bare):.0f}", ""])
        head = ["graph", *_KINDS, "all", "share of products with weights"]
        figures.tables[f"Microseconds in kernels, {length} tokens"] = head, rows
        most = sum(found[PLAIN].values()) / sum(bare)
        figures.raw.setdefault("kernels_us", {})[length] = {name: dict(each) for name, each in found.items()}
        figures.raw.setdefault("most", {})[length] = most


# --- what the graphs hold -----------------------------------------------------------------------------------------


def contents(graphs: Mapping[str, Path], layers: int, figures: Figures) -> None:
    """Operations of each file, those that compute shapes, and those that are a layer's whole attention."""
    rows = []
    for name, path in graphs.items():
        found = operations(path)
        attention = sum(count for kind, count in found.items() if kind.split("::")[-1] in _ATTENTION[:2])
        shapes = sum(found.get(kind, 0) for kind in _SHAPES)
        figures.raw.setdefault("operations", {})[name] = dict(found)
        rows.append([name, str(sum(found.values()) - found.get("Constant", 0)), str(shapes), str(attention)])
        if name == OURS:
            figures.bounds.append(Bound("layers whose attention is one operation", attention, layers, least=True))
    head = ["graph", "operations", "that compute shapes", "whole attentions"]
    figures.tables["The files, as they are before ONNX Runtime optimises them"] = head, rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few calls; writes no page")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout; writes no page")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep graphs there, and take those that are there")
    options = parser.parse_args()
    figures = Figures(versions=report.versions("torch", "transformers", "onnxruntime"))
    checkpoint = embedders.minilm()
    layers = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    with shared.folder(options.work) as work:
        graphs = graphs_of(checkpoint, work)
        compare(graphs, checkpoint, options.quick, figures)
        explain(graphs, options.quick, figures)
        contents(graphs, layers, figures)
    graph_sizes.add(checkpoint, figures)
    note = _note(figures.raw["most"])
    section = shared.Section("graphs", "A call of the graph", "python benchmarks/graphs.py", note)
    shared.publish(section, figures, as_json=options.json, write=not options.quick)
    return 0


def _note(most: Mapping[int, float]) -> str:
    bare = ", ".join(f"{ratio:.2f} times as fast at {length} tokens" for length, ratio in most.items())
    return (
        "MiniLM in fp32. `optimum` is what `optimum-cli export onnx` writes, `optimum -O2` and `-O3` what it writes "
        "with `--optimize`. All run in one ONNX Runtime with its default options but for one thread, and give token "
        "states; palmtop's file pools them too. A ratio is the median over rounds, in which every graph is called "
        f"once for the caches and once for the clock, over {SESSIONS} sessions of each. The kernels' times are from "
        "ONNX Runtime's own profile, which makes short calls longer; what `-O2` and `-O3` have as attention holds its "
        "projections. Most of each graph is the same products with the same weights in the same kernels: if everything "
        f"but products and attention took no time at all, palmtop's graph would be, by kernels, {bare} as optimum's. "
        "No graph of these same products goes farther in this engine."
    )


if __name__ == "__main__":
    sys.exit(main())
