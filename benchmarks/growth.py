"""How the export grows: time and peak memory of Llamas from 22 M to 1 B parameters, each in a process of its own.

    python benchmarks/growth.py [--sizes 22M,22M-deep,110M,350M,1B] [--targets onnx,coreml,executorch]
                                [--dtype float32] [--quick]                                half an hour in all

What was measured before is kept (`build/growth/measured.json`), so sizes and targets can be measured one at a time.
Writes its section of docs/benchmarks.md and the plots beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import llamas
import plots
import report
from figures import Bound

_ROOT = Path(__file__).resolve().parent.parent
_FOLDER = _ROOT / "build" / "growth"
_MEASURED = _FOLDER / "measured.json"
_PLOTS = {"memory": _ROOT / "docs" / "growth-memory.svg", "time": _ROOT / "docs" / "growth-time.svg"}
_TARGETS = ("onnx", "coreml", "executorch")
# How often memory is looked at, in seconds.
_EVERY = 0.1
# Below this many bytes of weights the libraries are most of what is in memory.
_LEAST_BOUND = 1_000_000_000
_MOST_TIMES = 2.0
# The same layers four times over, which may take four times as long.
_DEEPER = 4
_SHALLOW, _DEEP = "22M", "22M-deep"
_SHAPES = {
    _SHALLOW: llamas.SHAPES[_SHALLOW],
    _DEEP: dataclasses.replace(llamas.SHAPES[_SHALLOW], layers=_DEEPER * llamas.SHAPES[_SHALLOW].layers),
    **llamas.SHAPES,
}


def measure(size: str, target: str, dtype: str) -> dict[str, Any]:
    """Export one size to one target; gives seconds, the peak in bytes, what was predicted, and the parity found."""
    from palmtop.export import aside
    from palmtop.export.memory import beside, predicted, weights_of

    folder = _FOLDER / f"llama-{size}-{dtype}"
    parameters = llamas.make(folder, _SHAPES[size], dtype)
    weights = weights_of(sorted(folder.glob("*.safetensors")))
    apart = aside.worthwhile(aside.allowed(), weights.total)
    with tempfile.TemporaryDirectory(dir=_FOLDER) as scratch:
        command = [sys.executable, "-m", "palmtop.export", "export", str(folder), "-o", f"{scratch}/llama.bundle"]
        command += ["--task", "text-generation", "--to", target, "--json"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        began = time.perf_counter()
        running = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        peak, printed, told = watched(running)
        seconds = time.perf_counter() - began
    if running.returncode:
        raise SystemExit(f"{size} to {target} failed (exit code {running.returncode}): {told.decode()[-800:]}")
    document = json.loads(printed)
    return {
        "parameters": parameters,
        "layers": _SHAPES[size].layers,
        "weights": weights.total,
        "seconds": seconds,
        "stages": document["seconds"],
        "peak": peak,
        "predicted": predicted(weights, target, "fp32") + (beside(weights.total) if apart else 0),
        "error": document["parity"]["artifacts"][0]["outputs"][0]["max_error"],
    }


def watched(running: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """The most bytes that a session's processes held together, mapped files included, and what it printed."""
    printed: list[tuple[bytes, bytes]] = []
    reader = threading.Thread(target=lambda: printed.append(running.communicate()))
    reader.start()
    peak, known = 0, set[int]()
    while reader.is_alive():
        held, known = _held(running.pid, known)
        peak = max(peak, held)
        time.sleep(_EVERY)
    reader.join()
    return peak, *printed[0]


def _held(session: int, known: set[int]) -> tuple[int, set[int]]:
    """Bytes, and which processes there are. Of one process its own high-water mark, so that nothing is missed between
    two looks; of several what they hold together, memory that they share counted once.

    A process counts from the second look on (`known`: those of the last): one that is about to become another program
    has its parent's memory for a moment.
    """
    highest, there = 0, set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                highest = max(highest, _kilobytes(entry / "status", "VmHWM") * 1024)
                there.add(int(entry.name))
        except (OSError, ValueError, KeyError):  # ended meanwhile
            continue
    together = 0
    for process in there & known if len(there) > 1 else ():
        with contextlib.suppress(OSError, ValueError, KeyError):
            together += _kilobytes(Path("/proc", str(process), "smaps_rollup"), "Pss") * 1024
    return max(together, highest), there


def _kilobytes(path: Path, name: str) -> int:
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return int(fields[name].split()[0])


def write(measured: dict[str, dict[str, Any]]) -> None:
    """The section of docs/benchmarks.md, and the plots."""
    ordered = sorted(measured.items(), key=lambda item: (_TARGETS.index(item[1]["target"]), item[1]["parameters"]))
    rows = []
    for _, entry in ordered:
        stages = entry["stages"]
        times = entry["peak"] / entry["weights"]
        rows.append(
            [
                entry["target"],
                f"{entry['parameters'] / 1e6:.0f} M" + ("" if entry["dtype"] == "float32" else f", {entry['dtype']}"),
                str(entry["layers"]),
                f"{entry['weights'] / 1e9:.2f}",
                f"{entry['peak'] / 1e9:.2f}",
                f"{times:.2f}",
                f"{entry['predicted'] / 1e9:.2f}",
                f"{entry['seconds']:.0f}",
                f"{entry['seconds'] / entry['layers']:.1f}",
                f"{stages.get('capture', 0):.0f}",
                f"{stages.get(entry['target'], 0):.0f}",
                f"{stages.get('verify ' + entry['target'], 0):.0f}",
                f"{entry['error']:.1e}",
            ]
        )
    head = ["target", "parameters", "layers", "weights in fp32, GB", "peak, GB", "of the weights"]
    head += ["predicted, GB", "seconds", "a layer", "capture", "lower", "verify", "max error"]
    series: dict[str, list[tuple[float, float]]] = {}
    seconds: dict[str, list[tuple[float, float]]] = {}
    for _, entry in ordered:
        if entry["dtype"] == "float32" and entry["size"] != _DEEP:
            series.setdefault(entry["target"], []).append((entry["weights"] / 1e9, entry["peak"] / 1e9))
            seconds.setdefault(entry["target"], []).append((entry["parameters"] / 1e6, entry["seconds"]))
    largest = max((entry["weights"] / 1e9 for entry in measured.values()), default=1.0)
    series["twice the weights"] = [(0.0, 0.0), (largest, 2 * largest)]
    _PLOTS["memory"].write_text(plots.lines("Peak memory, GB", "weights in fp32, GB", series), encoding="utf-8")
    _PLOTS["time"].write_text(plots.lines("Seconds", "parameters, millions", seconds), encoding="utf-8")
    text = f"""## How the export grows

`python benchmarks/growth.py`

{report.versions("torch", "transformers", "onnx", "coremltools", "executorch")}. {report.machine()}.

Llamas with random weights (`benchmarks/llamas.py`), `--task text-generation`, each export in a process of its own, with
its verification. The peak counts every page in memory: those of mapped files too, which the system can take back, and
those that two processes share once. Of models with less than 1 GB of weights it is mostly the libraries'. It is to stay
below twice the weights in fp32.

{report.table(head, rows)}

### Bounds

{report.table(["figure", "bound", "measured", ""], [bound.row() for bound in bounds(measured)])}

![Peak memory by the size of the weights](growth-memory.svg)

![Time by the number of parameters](growth-time.svg)
"""
    report.write_section("growth", text)


def bounds(measured: dict[str, dict[str, Any]]) -> list[Bound]:
    """Of large models the peak beside the weights; and the time of four times as many layers beside that of one."""
    found = []
    for entry in measured.values():
        if entry["weights"] >= _LEAST_BOUND:
            what = f"{entry['target']}, {entry['size']}, {entry['dtype']}: peak, of the weights in fp32"
            found.append(Bound(what, entry["peak"] / entry["weights"], _MOST_TIMES))
    for target in _TARGETS:
        pair = [measured.get(f"{size} {target} float32") for size in (_SHALLOW, _DEEP)]
        if all(pair):
            few, many = (entry["seconds"] for entry in pair if entry)
            found.append(Bound(f"{target}: time of {_DEEPER} times as many layers", many / few, _DEEPER))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(_SHAPES))
    parser.add_argument("--targets", default=",".join(_TARGETS))
    parser.add_argument("--dtype", default="float32", help="of the weights on disk: float32 or bfloat16")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints on disk")
    parser.add_argument("--quick", action="store_true", help="the smallest size alone, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.sizes = _SHALLOW
    _FOLDER.mkdir(parents=True, exist_ok=True)
    measured = json.loads(_MEASURED.read_text()) if _MEASURED.exists() else {}
    for size in options.sizes.split(","):
        for target in options.targets.split(","):
            print(f"{size} to {target} ...", file=sys.stderr, flush=True)
            found = measure(size, target, options.dtype)
            measured[f"{size} {target} {options.dtype}"] = {
                **found,
                "size": size,
                "target": target,
                "dtype": options.dtype,
            }
            _MEASURED.write_text(json.dumps(measured, indent=1))
            print(f"  {found['seconds']:.0f} s, {found['peak'] / 1e9:.2f} GB", file=sys.stderr, flush=True)
        if not options.keep:
            shutil.rmtree(_FOLDER / f"llama-{size}-{options.dtype}")
    for bound in bounds(measured):
        print(*bound.row(), file=sys.stderr)
    if not options.quick:
        write(measured)


if __name__ == "__main__":
    main()
