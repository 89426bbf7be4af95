"""ONNX files written around their weights are those that onnx_ir writes, byte for byte."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
import torch
from palmtop.export.targets import onnx_write


def model(tensors: dict[str, object]) -> onnx_ir.Model:
    """One operation for each weight, whose name and text are there to be found in the file too."""
    values, nodes = [], []
    for name, tensor in tensors.items():
        given = tensor if isinstance(tensor, onnx_ir.TensorProtocol) else onnx_ir.tensor(tensor, name=name)
        value = onnx_ir.Value(name=name, const_value=given, type=onnx_ir.TensorType(given.dtype), shape=given.shape)
        values.append(value)
        nodes.append(onnx_ir.Node("", "Identity", [value], name=f"read {name}"))
    outputs = [node.outputs[0] for node in nodes]
    graph = onnx_ir.Graph([], outputs, nodes=nodes, initializers=values, name="weights", opset_imports={"": 20})
    made = onnx_ir.Model(graph, ir_version=10)
    made.metadata_props["who"] = "a test"
    return made


WEIGHTS = {
    "floats": np.arange(60_000, dtype=np.float32).reshape(300, 200),
    "small": np.ones(3, np.float32),
    "none": np.zeros((0, 4), np.float32),
    "halves": np.linspace(0, 1, 70_000, dtype=np.float16),
    "turned": np.arange(40_000, dtype=np.int64).reshape(200, 200).T,
    "number": np.array(2.5, np.float32),
    "torch's": torch.arange(90_000, dtype=torch.float32).reshape(90, 1000),
}


@pytest.mark.parametrize("least", [1, 1 << 16, 1 << 30])
def test_the_file_is_the_same(tmp_path, monkeypatch, least):
    monkeypatch.setattr(onnx_write, "_LEAST_BYTES", least)
    made = model(WEIGHTS)
    weights = {name: value.const_value for name, value in made.graph.initializers.items()}
    onnx_ir.save(made, tmp_path / "theirs.onnx")
    onnx_write.write(made, tmp_path / "ours.onnx")
    assert (tmp_path / "ours.onnx").read_bytes() == (tmp_path / "theirs.onnx").read_bytes()
    assert all(value.const_value is weights[name] for name, value in made.graph.initializers.items())


def test_four_bit_weights_are_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_write, "_LEAST_BYTES", 1)
    import ml_dtypes

    made = model({"fours": np.arange(64, dtype=np.int8).astype(ml_dtypes.int4).reshape(8, 8)})
    onnx_ir.save(made, tmp_path / "theirs.onnx")
    onnx_write.write(made, tmp_path / "ours.onnx")
    assert (tmp_path / "ours.onnx").read_bytes() == (tmp_path / "theirs.onnx").read_bytes()
