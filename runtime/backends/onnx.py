"""ONNX artifacts, executed by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from ..errors import DamagedError, RequestError
from ..manifest import Artifact
from . import Backend, Contents
from .onnx_file import operations
from .onnx_trace import trace

IDENTITY_KEY = "palmtop.identity"


class OnnxRunner:
    """An ONNX model in an ONNX Runtime session on the CPU."""

    def __init__(self, path: Path, artifact: Artifact, threads: int | None):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises half a dozen classes of its own, with no common base
            raise DamagedError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
        self.engine = f"ONNX Runtime {onnxruntime.__version__}"
        self.identity = self._session.get_modelmeta().custom_metadata_map.get(IDENTITY_KEY)
        self._outputs = [spec.name for spec in artifact.outputs]
        present = {output.name for output in self._session.get_outputs()}
        if not set(self._outputs) <= present:
            raise DamagedError(f"{path} has outputs {sorted(present)}; the manifest names {self._outputs}.")

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises RequestError when the graph refuses these sizes."""
        try:
            results = self._session.run(self._outputs, feeds)
        except Exception as error:  # as above
            raise RequestError(f"ONNX Runtime could not run the model: {error}") from error
        return dict(zip(self._outputs, results, strict=True))


BACKEND = Backend(
    target="onnx",
    open=OnnxRunner,
    missing=lambda: None,
    contents=lambda path: Contents(operations(path)),
    trace=trace,
)
