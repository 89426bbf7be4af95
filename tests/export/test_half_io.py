"""fp16 ONNX artifacts keep fp32 inputs and outputs, unless asked for fp16 ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from palmtop.export import export_module
from palmtop.runtime.bundle import Bundle
from palmtop.runtime.errors import RequestError
from palmtop.runtime.session import Session
from palmtop.runtime.verify import verify_bundle


class Scaled(torch.nn.Module):
    """Two layers; one input, one output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.Tanh(), torch.nn.Linear(48, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("half", [False, True])
def test_the_interface_is_fp16_only_when_asked(tmp_path, half):
    result = export_module(
        Scaled(), {"x": torch.randn(4, 32)}, tmp_path / "b", to=["onnx"], quantize="fp16", half_io=half
    )
    (artifact,) = result.manifest.artifacts
    dtype, kind = ("float16", TensorProto.FLOAT16) if half else ("float32", TensorProto.FLOAT)
    assert {spec.dtype for spec in (*artifact.inputs, *artifact.outputs)} == {dtype}
    graph = onnx.load(tmp_path / "b" / "onnx" / "model.onnx").graph
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {kind}
    session = Session.open(tmp_path / "b", artifact, result.manifest.identity)
    (output,) = session.run({"x": np.ones((4, 32))}).values()
    assert output.dtype == dtype
    assert verify_bundle(Bundle.open(tmp_path / "b")).passed


def test_fp16_inputs_are_refused_where_nothing_else_is_fp16(tmp_path):
    with pytest.raises(RequestError, match="--fp16-io is for --quantize fp16"):
        export_module(Scaled(), {"x": torch.randn(4, 32)}, tmp_path / "b", to=["onnx"], half_io=True)
