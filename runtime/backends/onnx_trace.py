"""The values inside an ONNX file: the very file, with its inner values declared as outputs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ..errors import RequestError
from ..manifest import Artifact
from . import Traced, Visit

_MODULE_KEY = "palmtop.module"
_AT_ONCE = 64  # values fetched by one run: what is not fetched is not held


def trace(path: Path, artifact: Artifact, feeds: dict[str, np.ndarray], visit: Visit) -> None:
    """Call `visit` with every floating-point value of the main graph, in order. Values of branches are not seen.

    Raises:
        RequestError: the `onnx` package is missing; executing the file does without it, rewriting it does not.
    """
    if importlib.util.find_spec("onnx") is None:
        raise RequestError("Looking into an ONNX file needs the onnx package: pip install 'palmtop[export]'.")
    import onnx

    model = onnx.load(path, load_external_data=False)
    operations = _operations(model)
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in operations if name not in present)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {output.name: output.type for output in session.get_outputs()}
    names = [name for name in operations if kinds.get(name) in ("tensor(float)", "tensor(float16)", "tensor(double)")]
    for start in range(0, len(names), _AT_ONCE):
        chunk = names[start : start + _AT_ONCE]
        for name, value in zip(chunk, session.run(chunk, feeds), strict=True):
            operation, module = operations[name]
            visit(Traced(name, operation, module, value))


def _operations(model: Any) -> dict[str, tuple[str, str | None]]:
    """Value name -> operation and PyTorch module, in order of the graph. Casts between precisions belong to none."""
    found = {}
    for node in model.graph.node:
        module = next((entry.value for entry in node.metadata_props if entry.key == _MODULE_KEY), None)
        if node.op_type != "Constant":
            found.update(dict.fromkeys(filter(None, node.output), (node.op_type, module)))
    return found
