"""ExecuTorch artifacts, executed by ExecuTorch's Python runtime.

Its wheel needs torch, which the rest of palmtop's runtime does not: both are imported when an artifact is opened.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamagedError, RequestError
from ..manifest import CACHE_LAYOUT, Artifact
from . import Backend, Contents
from .executorch_file import constants, describe

IDENTITY_METHOD = "palmtop_identity"


class ExecutorchRunner:
    """A `.pte`, its weights mapped from the file.

    ExecuTorch has one pool of threads for a process: `threads` sets its size for every loaded artifact.
    """

    def __init__(self, path: Path, artifact: Artifact, threads: int | None):
        identity = constants(path).get(IDENTITY_METHOD)
        self.identity = identity if isinstance(identity, str) else None
        self._inputs = [spec.name for spec in artifact.inputs]
        self._outputs = [spec.name for spec in artifact.outputs]
        entry = artifact.methods[artifact.method]
        said: list[str] = []
        try:
            with _native_messages(said):
                import torch  # before the library, which is linked against it
                from executorch.extension.pybindings import _portable_lib as library

                if _calls_quantized_kernels(path):
                    from executorch.kernels import quantized  # noqa: F401 - registers them

                if threads is not None and library._threadpool_get_thread_count() != threads:
                    library._unsafe_reset_threadpool(threads)
                self._library, self._path = library, path
                program = self._load()
                names = {program.get_method_name(index) for index in range(program.num_methods())}
                if entry not in names:
                    raise DamagedError(f"{path} has no method '{entry}', which the manifest names.")
                self._entry, self._stateful = entry, bool(artifact.states)
                self._is_cache = self._stateful and all(spec.layout == CACHE_LAYOUT for spec in artifact.states)
                # Loading packs the weights, for as long as many tokens take: what is loaded waits here for a state.
                self._spare = [_Loaded(program, entry)]
        except RuntimeError as error:
            raise DamagedError(f"{path} cannot be loaded by ExecuTorch: {error}{_last(said)}") from error
        self._torch = torch
        self.engine = f"ExecuTorch {_version()}"

    def _load(self) -> Any:
        return self._library._load_program(
            str(self._path), program_verification=self._library.Verification.InternalConsistency
        )

    def new_state(self) -> Any:
        """A program loaded anew, its weights mapped from the file, whose buffers begin as zeros.

        All methods of one loaded program write into the same buffers, and find there what was left. Keys and values
        are left without harm: a program whose conversation is over serves the next, as in ExecuTorch's own runners.
        """
        try:
            loaded = self._spare.pop()
        except IndexError:
            loaded = _Loaded(self._load(), self._entry)
        state = _State(loaded)
        if self._is_cache:
            weakref.finalize(state, self._give_back, loaded).atexit = False
        return state

    def _give_back(self, loaded: _Loaded) -> None:
        if loaded.finite and not self._spare:
            self._spare.append(loaded)

    def run(self, feeds: dict[str, np.ndarray], state: Any = None) -> dict[str, np.ndarray]:
        """Execute the method. Raises RequestError when the program refuses these sizes."""
        if state is None and self._stateful:
            state = self.new_state()
        loaded = self._spare[0] if state is None else state.loaded
        try:
            results = loaded.method([self._tensor(feeds[name]) for name in self._inputs])
        except RuntimeError as error:
            raise RequestError(f"ExecuTorch could not run the model: {error}") from error
        if len(results) != len(self._outputs):
            raise DamagedError(f"The model gives {len(results)} outputs; the manifest names {len(self._outputs)}.")
        outputs = {name: result.numpy() for name, result in zip(self._outputs, results, strict=True)}
        if self._is_cache:
            loaded.finite = loaded.finite and all(np.isfinite(array).all() for array in outputs.values())
        return outputs

    def _tensor(self, array: np.ndarray) -> Any:
        return self._torch.from_numpy(array if array.flags.writeable else array.copy())


class _Loaded:
    """A loaded program and its method. `finite`: whether it gave no NaN and no infinity, which a mask cannot hide."""

    def __init__(self, program: Any, entry: str):
        self._program = program
        self.method = program.load_method(entry)
        self.finite = True


@dataclass(eq=False)
class _State:
    """What a conversation holds on to: a loaded program that nobody else writes into meanwhile."""

    loaded: _Loaded


def _calls_quantized_kernels(path: Path) -> bool:
    """Whether a file needs the library that an app links for artifacts with integer weights."""
    methods = describe(path)["methods"].values()
    return any(kernel.startswith("quantized_decomposed::") for method in methods for kernel in method["kernels"])


@contextlib.contextmanager
def _native_messages(lines: list[str]) -> Iterator[None]:
    """Keep what ExecuTorch writes to stderr while loading: chatter when all is well, the cause when not.

    Some of it comes by way of `sys.stderr`, some straight from C++.
    """
    text = io.StringIO()
    try:
        saved = os.dup(2)
    except OSError:  # a process without stderr
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stderr(text):
                yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            written = file.read().decode("utf-8", "replace") + text.getvalue()
            lines.extend(line for line in written.splitlines() if line.strip())


def _last(lines: list[str]) -> str:
    """The last messages that tell something, to add to an error."""
    told = [line.partition("] ")[2] or line for line in lines if "cpuinfo" not in line and "threadpool" not in line]
    return "".join(f"\n  {line}" for line in told[-3:])


def _version() -> str:
    try:
        return importlib.metadata.version("executorch")
    except importlib.metadata.PackageNotFoundError:
        return "(unknown version)"


def missing() -> str | None:
    """Why this machine cannot execute `.pte` files, and what to install; None when it can."""
    for package in ("torch", "executorch"):
        if importlib.util.find_spec(package) is None:
            return (
                f"Executing .pte files needs ExecuTorch's Python runtime, whose wheel needs torch; {package} is not "
                "installed. Install both with: pip install 'palmtop[executorch]'"
            )
    return None


def contents(path: Path) -> Contents:
    """The kernels and delegates of all methods. Raises DamagedError when the file is not a `.pte`."""
    kernels: Counter[str] = Counter()
    delegates = []
    for method in describe(path)["methods"].values():
        kernels.update(method["kernels"])
        delegates += [(delegate["backend"], delegate["operations"]) for delegate in method["delegates"]]
    return Contents(dict(kernels.most_common()), tuple(delegates))


BACKEND = Backend(target="executorch", open=ExecutorchRunner, missing=missing, contents=contents)
