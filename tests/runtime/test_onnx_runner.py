"""What ONNX Runtime says of a graph that loads and does not run is an error of palmtop's, and fails verification."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from palmtop.runtime.backends.onnx import OnnxRunner
from palmtop.runtime.errors import RequestError
from palmtop.runtime.golden import Expected
from palmtop.runtime.manifest import Artifact, Dim, TensorSpec
from palmtop.runtime.session import Session
from palmtop.runtime.verify import Case, verify_artifact

DIMS = (Dim(symbol="batch", min=1), Dim(size=3))
ARTIFACT = Artifact(
    target="onnx",
    path="model.onnx",
    precision="fp32",
    inputs=(TensorSpec("x", "float32", DIMS),),
    outputs=(TensorSpec("y", "float32", DIMS),),
)


@pytest.fixture
def of_two_rows(tmp_path):
    """A graph that says it takes any batch and reshapes to two rows."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [2, 3])
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy"]
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], [shape])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    return OnnxRunner(tmp_path / "m.onnx", ARTIFACT, 1)


def test_a_graph_runs_where_it_can(of_two_rows):
    assert of_two_rows.run({"x": np.ones((2, 3), np.float32)})["y"].shape == (2, 3)


def test_a_graph_that_does_not_run_says_why(of_two_rows):
    with pytest.raises(RequestError, match=r"ONNX Runtime could not run the model: .*Reshape"):
        of_two_rows.run({"x": np.ones((3, 3), np.float32)})


def test_an_artifact_that_does_not_run_on_a_case_has_failed(of_two_rows):
    array = np.ones((3, 3), np.float32)
    case = Case("three rows", {"x": array}, {"y": [Expected.of(array)]})

    session = Session(ARTIFACT, of_two_rows)
    report = verify_artifact(ARTIFACT, lambda: session, [case], task="feature-extraction", tokenizer=None, noise={})

    assert report.status == "failed"
    assert "cannot be executed on 'three rows': ONNX Runtime could not run the model" in report.reason
