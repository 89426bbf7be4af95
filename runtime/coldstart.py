"""What a new process pays before its first answer: `python -m palmtop.runtime.coldstart BUNDLE TARGET THREADS`.

The process says on stdout, as JSON, how long each stage took and the most memory it held. It is started by
`measure`, which gives it the input on stdin, so that nothing is imported here before the clock runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import PalmtopError, RequestError

MODULE = "palmtop.runtime.coldstart"


def measure(arguments: Sequence[str], text: Any, threads: int | None, module: str = MODULE) -> dict[str, float]:
    """Run a fresh process to its first answer.

    Args:
        arguments: what follows the module's name on the command line.
        text: a call's input as JSON knows it; None: the bundle's first golden vector is run on the artifact itself.
        threads: also the number that numpy's library gets.
        module: what is run; it ends in `report`.

    Returns:
        Seconds: `import_s` from the start of the process until all is imported, `load_s`, `first_s` for the first
        answer, and `total_s`, their sum.
        `peak_bytes`: the most memory that the process held (resident).

    Raises:
        RequestError: the process failed; says what it said.
    """
    environment = dict(os.environ)
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
            environment[name] = str(threads)
    command = [sys.executable, "-m", module, *arguments]
    request = json.dumps({"text": text, "threads": threads, "started": time.time()})
    done = subprocess.run(command, input=request, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise RequestError(f"A fresh process could not give an answer: {said[-1] if said else done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])  # libraries may have said something before it


def report(prepare: Callable[[dict[str, Any]], tuple[Callable[[], Any], float]]) -> None:
    """Time the first answer of this process.

    Args:
        prepare: gets the request, imports and loads what is needed, and gives a function that answers and the time
            (`time.time()`) when imports were done.
    """
    request = json.loads(sys.stdin.readline())
    answer, imported = prepare(request)
    loaded = time.time()
    answer()
    done = time.time()
    result = {
        "import_s": imported - request["started"],
        "load_s": loaded - imported,
        "first_s": done - loaded,
        "total_s": done - request["started"],
        "peak_bytes": peak_memory(),
    }
    print(json.dumps(result), flush=True)


def peak_memory() -> int:
    """The most memory this process has held so far, resident, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it started us
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _prepare(request: dict[str, Any]) -> tuple[Callable[[], Any], float]:
    root, target = sys.argv[1:3]
    threads, text = request["threads"], request["text"]
    if text is not None:
        from . import load
        from . import pipelines as _  # noqa: F401  (what `load` imports is import time)

        imported = time.time()
        pipeline: Any = load(root, target=target, threads=threads)
        return lambda: pipeline(text), imported
    from .bundle import Bundle

    imported = time.time()
    bundle = Bundle.open(root)
    session = bundle.open_session(target, threads)
    feeds = bundle.golden()[0].feeds()
    return lambda: session.run(feeds), imported


if __name__ == "__main__":
    try:
        report(_prepare)
    except PalmtopError as error:
        sys.exit(str(error))
