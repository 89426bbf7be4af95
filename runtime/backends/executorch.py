"""ExecuTorch artifacts, executed by ExecuTorch's Python runtime.

Its wheel needs torch, which the rest of palmtop's runtime does not: both are imported when an artifact is opened.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np

from ..errors import DamagedError, RequestError
from ..manifest import Artifact
from . import Backend, Contents
from .executorch_file import describe

IDENTITY_METHOD = "palmtop_identity"


class ExecutorchRunner:
    """A `.pte` loaded from its file."""

    def __init__(self, path: Path, artifact: Artifact, threads: int | None):
        import torch
        from executorch.extension.pybindings import _portable_lib as library

        self._torch = torch
        if threads is not None:
            library._unsafe_reset_threadpool(threads)
        try:
            self._program = library._load_program(str(path))
            names = {self._program.get_method_name(index) for index in range(self._program.num_methods())}
            self.identity = None
            if IDENTITY_METHOD in names:
                self.identity = self._program.load_method(IDENTITY_METHOD)([])[0]
            self._method = self._program.load_method(artifact.methods["forward"])
        except RuntimeError as error:
            raise DamagedError(f"{path} cannot be loaded by ExecuTorch: {error}") from error
        self.engine = "ExecuTorch"
        self._inputs = [spec.name for spec in artifact.inputs]
        self._outputs = [spec.name for spec in artifact.outputs]

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = [self._torch.from_numpy(feeds[name]) for name in self._inputs]
        try:
            results = self._method(tensors)
        except RuntimeError as error:
            raise RequestError(f"ExecuTorch could not run the model: {error}") from error
        return {name: result.numpy() for name, result in zip(self._outputs, results, strict=True)}


def missing() -> str | None:
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
