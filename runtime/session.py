"""A loaded artifact that takes any feeds its signature admits.

The session stands between pipelines and backends: it checks names and sizes, casts to the declared dtypes, and splits a
batch for artifacts that take one row at a time. What an artifact takes is data in the manifest, so no pipeline knows
which format it runs on.
"""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .backends import Runner, StatefulRunner, get_backend
from .errors import DamagedError, RequestError
from .manifest import Artifact, TensorSpec

if TYPE_CHECKING:  # what explains a failure is imported with the first one
    from .cause import Cause
    from .parity import Bound


# So many shapes of inputs are remembered: those of texts by their lengths, and not of a cache at every size it has.
_MOST_SHAPES = 4096
_SHAPE = attrgetter("shape")


class Session:
    """An artifact ready to run. Make one with `Session.open`.

    Shapes are checked when they come for the first time. A model's run leaves nothing of this code in the caches, so
    that for a text every function on its way counts.
    """

    def __init__(self, artifact: Artifact, runner: Runner, path: Path | None = None):
        self.artifact = artifact
        self.runner = runner
        self.path = path
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in artifact.inputs}
        self._taken: set[tuple[tuple[int, ...], ...]] = set()  # shapes of all inputs that passed the checks
        self.splits_batch = bool(artifact.inputs) and all(
            spec.dims and spec.dims[0].constant == 1 for spec in artifact.inputs
        )

    @classmethod
    def open(cls, root: Path, artifact: Artifact, identity: str | None, threads: int | None = None) -> Session:
        """Load an artifact of the bundle at `root`.

        Args:
            identity: what the artifact must carry; None opens it unchecked.
            threads: number of CPU threads; None leaves the choice to the engine.

        Raises:
            RequestError: this machine cannot execute the format; says what to install.
            DamagedError: the file is damaged, or belongs to another bundle.
        """
        backend = get_backend(artifact.target)
        missing = backend.missing()
        if missing:
            raise RequestError(missing)
        runner = backend.open(root / artifact.path, artifact, threads)
        if identity is not None and runner.identity != identity:
            raise DamagedError(
                f"{artifact.path} does not belong to this bundle: it carries identity {runner.identity or 'none'}, the "
                f"manifest says {identity}. The model file was swapped; export the bundle again."
            )
        return cls(artifact, runner, root / artifact.path)

    @property
    def engine(self) -> str:
        return self.runner.engine

    def new_state(self) -> Any:
        """What an artifact with states remembers from one call to the next, as it is before the first.

        Each conversation has its own; it is what `run` takes as `state`. None for an artifact without states.
        """
        return cast(StatefulRunner, self.runner).new_state() if self.artifact.states else None

    def run(self, feeds: dict[str, np.ndarray], state: Any = None) -> dict[str, np.ndarray]:
        """Run the artifact on named arrays, leading axis the batch.

        Args:
            state: of an artifact with states, what `new_state` gave; the call changes it.

        Raises:
            RequestError: an input is missing, or a size is outside what the artifact takes.
        """
        try:
            given = list(map(feeds.__getitem__, self._dtypes))
        except KeyError:
            missing = [name for name in self._dtypes if name not in feeds]
            raise RequestError(f"Missing input {', '.join(missing)} for {self.artifact.path}.") from None
        given = list(map(np.ascontiguousarray, given, self._dtypes.values()))
        arrays = dict(zip(self._dtypes, given, strict=True))
        shapes = tuple(map(_SHAPE, given))
        if shapes not in self._taken:
            rows = len(given[0]) if given else 1
            if self.splits_batch and rows != 1:
                parts = [
                    self.run({name: array[row : row + 1] for name, array in arrays.items()}) for row in range(rows)
                ]
                return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            self._check(shapes)
        if state is None:
            return self.runner.run(arrays)
        return cast(StatefulRunner, self.runner).run(arrays, state)

    def diagnose(self, feeds: dict[str, np.ndarray], bound: Bound) -> Cause | None:
        """Which operation makes the artifact miss `bound` on these feeds (one row, if it takes one); None: unknown."""
        find = get_backend(self.artifact.target).diagnose if self.path is not None else None
        if find is None or self.path is None:
            return None
        arrays = {name: np.ascontiguousarray(feeds[name], dtype) for name, dtype in self._dtypes.items()}
        return find(self.path, self.artifact, arrays, bound)

    def _check(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Raise RequestError for shapes of the inputs that the artifact does not take; remember those that it takes."""
        sizes: dict[str, int] = {}
        for spec, shape in zip(self.artifact.inputs, shapes, strict=True):
            _check(spec, shape, sizes)
        if len(self._taken) * len(shapes) < _MOST_SHAPES:
            self._taken.add(shapes)


def _check(spec: TensorSpec, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Raise RequestError for a shape that the artifact does not take. `sizes`: those of symbols, as far as known."""
    if len(shape) == len(spec.dims):
        for dim, size in zip(spec.dims, shape, strict=True):
            if not dim.admits(size) or (dim.symbol and sizes.setdefault(dim.symbol, size) != size):
                break
        else:
            return
    dims = ", ".join(map(str, spec.dims))
    raise RequestError(f"Input '{spec.name}' has shape {list(shape)}; the artifact takes [{dims}].")
