"""One pair of model type and task: a tiny checkpoint, exported, executed and verified against eager PyTorch.

    python -m tests.coverage.case MODEL_TYPE TASK [TARGET ...] [--true-shapes]     one pair, in this process
    python -m tests.coverage.case --serve                           pairs from standard input, each in a fork

Serving imports torch, Transformers and the exporters once; each pair still has a process of its own, with limits.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PALMTOP_CACHE"] = ""

TARGETS = ("onnx", "coreml", "executorch")
SECONDS = 900
BYTES = 20 * 2**30  # of address space: what the libraries map alone is several GiB
_TITLES = {"onnx": "ONNX", "coreml": "Core ML", "executorch": "ExecuTorch"}
_EXITS = {1: "mismatch", 2: "error", 3: "error", 4: "refused"}


def run(model_type: str, task: str, targets: Sequence[str] = TARGETS, true_shapes: bool = False) -> dict[str, Any]:
    """What came of a pair: the checkpoint, and of each target its status, with a reason where it is not `verified`."""
    from .checkpoints import NoModel, make_checkpoint

    began = time.perf_counter()
    result: dict[str, Any] = {"model_type": model_type, "task": task, "targets": {}}
    with tempfile.TemporaryDirectory(prefix="palmtop-coverage-") as place:
        folder = Path(place)
        try:
            made = make_checkpoint(folder / "checkpoint", model_type, task, true_shapes=true_shapes)
        except NoModel as error:
            result["targets"] = {target: _missed("no checkpoint", error) for target in targets}
            return result
        result |= {"model": made.model_class, "parameters": made.parameters, "kept": list(made.kept)}
        result["targets"] = apart(lambda chosen: _export(folder, task, chosen), list(targets))
    result["seconds"] = round(time.perf_counter() - began, 1)
    return result


def apart(
    export: Callable[[Sequence[str]], dict[str, dict[str, Any]]], targets: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What came of each format, for all that an export of several says of one: a failure is not the others'.

    Formats that the error names are left out of the next export; where it names none, each is exported alone.
    """
    found = export(targets)
    if len(targets) == 1 or not any("reason" in entry for entry in found.values()):
        return found
    failed = _named(found)
    rest = [target for target in targets if target not in failed]
    if not failed:
        return {target: export([target])[target] for target in rest}
    return {target: found[target] for target in failed} | (apart(export, rest) if rest else {})


def _export(folder: Path, task: str, targets: Sequence[str]) -> dict[str, dict[str, Any]]:
    from palmtop.export import export_checkpoint
    from palmtop.runtime.errors import PalmtopError

    try:
        done = export_checkpoint(folder / "checkpoint", folder / "out.bundle", task=task, to=targets, force=True)
    except PalmtopError as error:
        return {target: _missed(_EXITS[error.exit_code], error, error.exit_code) for target in targets}
    except MemoryError as error:
        return {target: _missed("out of memory", error) for target in targets}
    except Exception as error:
        return {target: _missed("crashed", error) for target in targets}
    measured = {}
    for target in targets:
        reports = [entry for entry in done.report.artifacts if entry.target == target]
        measures = [measure.to_json() for entry in reports for measure in entry.measures]
        measured[target] = {
            "status": "verified" if all(entry.status == "passed" for entry in reports) else "not executed",
            "max_error": max((m["max_error"] for m in measures if m["max_error"] is not None), default=None),
            "agreement": min((m["agreement"] for m in measures if m.get("agreement") is not None), default=None),
            "notes": list(done.notes),
        }
    return measured


def _named(found: dict[str, dict[str, Any]]) -> list[str]:
    """The formats that an export of several broke at, as its error names them."""
    text = next(entry["reason"] for entry in found.values() if "reason" in entry)
    return [t for t in found if re.search(rf"(^|[\s/]){t}[:/]|\b{_TITLES[t]}\b", text, re.MULTILINE)]


def _missed(status: str, error: BaseException, code: int | None = None) -> dict[str, Any]:
    text = str(error).strip()
    entry: dict[str, Any] = {"status": status, "reason": f"{type(error).__name__}: {text}"[:1500]}
    if code is not None:
        entry["exit_code"] = code
        entry["reason"] = text[:1500]
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "site-packages" not in frame.filename]
        entry["where"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in own[-4:]]
    return entry


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Libraries print as they like; results go to the real standard output alone."""
    sys.stdout.flush()
    kept, away = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(away, 1)
    if not os.environ.get("PALMTOP_COVERAGE_LOUD"):
        os.dup2(away, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)


def _warm_up() -> None:
    """Lower one model here, so that what the libraries then remember (patterns, symbolic sums) is in every fork.

    Nothing is executed by a format's own engine: some have threads, which a fork would not have.
    """
    import palmtop.export.api
    import palmtop.runtime.verify  # noqa: F401
    from palmtop.export.methods import capture_methods
    from palmtop.export.source import open_source
    from palmtop.export.subject import checkpoint_subject
    from palmtop.export.targets import Options, get_target

    from .checkpoints import make_checkpoint

    with tempfile.TemporaryDirectory(prefix="palmtop-coverage-") as place:
        folder = Path(place)
        made = make_checkpoint(folder / "checkpoint", "bert", "text-classification")
        (captured,) = capture_methods(checkpoint_subject(open_source(made.folder)))
        for name in TARGETS:
            target = get_target(name)
            artifact = target.plan(captured, Options())
            target.lower(captured, artifact, "00", folder / artifact.path)


def serve() -> None:
    """Take a JSON object a line (model_type, task, targets, seconds, path) and answer with the path of its result."""
    with _quiet():
        _warm_up()
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        child = os.fork()
        if child == 0:
            _child(asked)
        status = _wait(child, asked["seconds"])
        path = Path(asked["path"])
        if not path.is_file():
            died = "timeout" if status is None else "crashed"
            reason = f"It took more than {asked['seconds']} s." if status is None else f"The process died ({status})."
            targets = {target: {"status": died, "reason": reason} for target in asked["targets"]}
            seconds = round(time.perf_counter() - began, 1)
            result = {key: asked[key] for key in ("model_type", "task")} | {"targets": targets, "seconds": seconds}
            path.write_text(json.dumps(result, indent=1), encoding="utf-8")
        print(json.dumps({"path": str(path)}), flush=True)


def _child(asked: dict[str, Any]) -> None:
    os.setsid()  # what it starts goes when it goes
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path = Path(asked["path"])
    with _quiet():
        try:
            result = run(asked["model_type"], asked["task"], asked["targets"], asked.get("true_shapes", False))
        except Exception as error:  # a fork that leaves by way of `exit` waits for threads that only its parent has
            result = {"model_type": asked["model_type"], "task": asked["task"]}
            result["targets"] = {target: _missed("crashed", error) for target in asked["targets"]}
    used = resource.getrusage(resource.RUSAGE_SELF)
    result["cpu_seconds"] = round(used.ru_utime + used.ru_stime, 1)
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(result, indent=1), encoding="utf-8")
    aside.rename(path)
    os._exit(0)


def _wait(child: int, seconds: float) -> int | None:
    """The exit status, or None when the time is over and the child was ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        named = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
        found = run(named[0], named[1], named[2:] or TARGETS, true_shapes="--true-shapes" in sys.argv)
        print(json.dumps(found, indent=1))
