"""What executes an artifact, one module a format. A backend is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import RequestError
from ..manifest import Artifact

if TYPE_CHECKING:  # what explains a failure is imported with the first one
    from ..cause import Cause
    from ..explain import Layer
    from ..parity import Bound


class Runner(Protocol):
    """A loaded artifact. `engine` says in reports what executed it ("ONNX Runtime 1.31.1")."""

    engine: str
    identity: str | None

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Execute `forward`. Feeds and results are by the names, dtypes and dims of the artifact's signature."""
        ...


class StatefulRunner(Runner, Protocol):
    """A loaded artifact with states: what it remembers between calls is made by `new_state` and handed to `run`."""

    def new_state(self) -> Any:
        """The states as they are before the first call."""
        ...

    def run(self, feeds: dict[str, np.ndarray], state: Any = None) -> dict[str, np.ndarray]:
        """Execute `forward`, reading and changing `state`."""
        ...


@dataclass(frozen=True)
class Contents:
    """What an artifact computes with: operations by name, and for each delegate its name and its operations by name."""

    operations: dict[str, int]
    delegates: tuple[tuple[str, dict[str, int]], ...] = ()

    @property
    def delegated(self) -> float | None:
        """The share of operations that delegates take, 0..1; None for formats without delegates."""
        inside = sum(sum(operations.values()) for _, operations in self.delegates)
        total = inside + sum(self.operations.values())
        return inside / total if self.delegates and total else None


@dataclass(frozen=True)
class Traced:
    """A value inside an artifact: its name there, the operation that gave it, and the PyTorch module it came from
    ("": the model itself; None: not recorded)."""

    name: str
    operation: str
    module: str | None
    value: np.ndarray


Visit = Callable[[Traced], None]
Rounding = tuple[tuple["Layer", ...], "Layer | None"]


@dataclass(frozen=True)
class Backend:
    """How one format is executed here.

    `open(path, artifact, threads)` loads an artifact, raising DamagedError when the file is not what it should be.
    `missing()` says why this machine cannot execute the format (and the remedy), or None when it can.
    `contents(path)` lists the operations of an artifact without running it.
    `diagnose(path, artifact, feeds, bound)`, where there is one: which operation makes a half-precision artifact
    fail on these feeds; None when it is not the arithmetic.
    `rounding(path, artifact, feeds, bound)`, where there is one: the layers of a half-precision artifact against
    its own run without rounding, and the one where they part ways.
    `trace(path, artifact, feeds, visit)`, where there is one: runs the artifact and calls `visit` with every value
    in it, in order.
    `inner_engine`: what executes those three, where it is not what executes the artifact.
    """

    target: str
    open: Callable[[Path, Artifact, int | None], Runner]
    missing: Callable[[], str | None]
    contents: Callable[[Path], Contents]
    diagnose: Callable[[Path, Artifact, dict[str, np.ndarray], Bound], Cause | None] | None = None
    rounding: Callable[[Path, Artifact, dict[str, np.ndarray], Bound], Rounding] | None = None
    trace: Callable[[Path, Artifact, dict[str, np.ndarray], Visit], None] | None = None
    inner_engine: str | None = None


# Target name -> module here that has its `BACKEND`, in the order in which `load` prefers them.
BACKENDS = {"onnx": "onnx", "coreml": "coreml", "executorch": "executorch"}


def get_backend(target: str) -> Backend:
    """The backend of a target. Raises RequestError when there is none."""
    if target not in BACKENDS:
        raise RequestError(f"No backend executes '{target}' artifacts. Known: {', '.join(BACKENDS)}.")
    return importlib.import_module(f".{BACKENDS[target]}", __name__).BACKEND
