"""Layers with a bias are one product of matrices, wherever that takes fewer operations, and give what they gave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx as onnx_library
import pytest
import torch
from palmtop.export.capture import capture, trace_module
from palmtop.export.targets import Options
from palmtop.export.targets.onnx import lower, plan
from palmtop.runtime.backends import get_backend
from palmtop.runtime.manifest import Artifact, TensorSpec
from palmtop.runtime.session import Session

from .executorch_models import BATCH, IDENTITY, capture_checkpoint, sequence, size

_WIDTH = 16


class Feed(torch.nn.Module):
    """A block of a Transformer without its attention, twice; `between` is computed from what the first gives."""

    def __init__(self, between=lambda x: x):
        super().__init__()
        self.between = between
        self.up, self.up_again = torch.nn.Linear(_WIDTH, 24), torch.nn.Linear(_WIDTH, 24)
        self.down, self.down_again = torch.nn.Linear(24, _WIDTH), torch.nn.Linear(24, _WIDTH)
        self.norm, self.norm_again = torch.nn.LayerNorm(_WIDTH), torch.nn.LayerNorm(_WIDTH)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.norm(x + self.down(torch.nn.functional.gelu(self.up(x))))
        x = self.between(first)
        return first, self.norm_again(x + self.down_again(torch.tanh(self.up_again(x))) * 0.5)


class Layer(torch.nn.Module):
    """One layer between operations that need all three axes."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(_WIDTH, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.softmax(1)).cumsum(1)


def lowered(module: torch.nn.Module, folder: Path, *names: str, **options) -> Artifact:
    """A module of `x`, (batch, sequence, 16), as an ONNX file."""
    torch.manual_seed(0)
    spec = TensorSpec("x", "float32", (BATCH, sequence(40), size(_WIDTH)))
    module = module.eval().requires_grad_(False)
    captured = capture(module, {"x": torch.randn(3, 7, _WIDTH)}, [spec], list(names), trace=trace_module)
    artifact = plan(captured, Options(**options))
    lower(captured, artifact, IDENTITY, folder / artifact.path)
    return artifact


def nodes(path: Path) -> list[onnx_library.NodeProto]:
    return list(onnx_library.load(path, load_external_data=False).graph.node)


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in nodes(path)]


@pytest.mark.parametrize(
    "between",
    [lambda x: x, lambda x: x - x.mean(1, keepdim=True), lambda x: x.flip(1), lambda x: x * x[:, :1]],
    ids=["nothing", "a mean over tokens", "tokens turned round", "the first token"],
)
def test_layers_on_rows_give_what_pytorch_gives_whatever_stands_between(tmp_path, between):
    module = Feed(between)
    artifact = lowered(module, tmp_path, "first", "last")
    found = kinds(tmp_path / artifact.path)
    assert found.count("Gemm") == 4
    assert "MatMul" not in found
    session = Session.open(tmp_path, artifact, IDENTITY, threads=1)
    for rows, length in ((1, 1), (2, 9), (5, 40)):
        x = torch.randn(rows, length, _WIDTH)
        given = session.run({"x": x.numpy()})
        for name, expected in zip(("first", "last"), module(x), strict=True):
            assert given[name].shape == (rows, length, _WIDTH)
            np.testing.assert_allclose(given[name], expected.numpy(), rtol=1e-5, atol=2e-6)


def test_what_lies_between_two_layers_is_reshaped_once_on_the_way_in_and_once_on_the_way_out(tmp_path):
    artifact = lowered(Feed(), tmp_path, "first", "last")
    assert kinds(tmp_path / artifact.path).count("Reshape") == 3  # x, and the two outputs


def test_a_layer_by_itself_stays_a_product_and_an_addition(tmp_path):
    artifact = lowered(Layer(), tmp_path, "output")
    found = kinds(tmp_path / artifact.path)
    assert "MatMul" in found
    assert "Gemm" not in found
    assert "Reshape" not in found


def test_fp16_is_left_as_it_is(tmp_path):
    artifact = lowered(Feed(), tmp_path, "first", "last", precision="fp16")
    assert "Gemm" not in kinds(tmp_path / artifact.path)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet", "albert"])
def test_no_layer_of_an_encoder_adds_its_bias_by_itself(checkpoint, tmp_path, model_type):
    _, program = capture_checkpoint(checkpoint(model_type, "feature-extraction"), "feature-extraction")
    artifact = plan(program, Options())
    path = tmp_path / artifact.path
    lower(program, artifact, IDENTITY, path)
    every = nodes(path)
    products = {node.output[0] for node in every if node.op_type == "MatMul"}
    assert not [node.name for node in every if node.op_type == "Add" and products & set(node.input)]
    assert sum(node.op_type == "Gemm" for node in every) >= 12  # six a layer


def test_each_layer_is_still_seen_as_its_module(checkpoint, tmp_path):
    subject, program = capture_checkpoint(checkpoint("bert", "feature-extraction"), "feature-extraction")
    artifact = plan(program, Options())
    lower(program, artifact, IDENTITY, tmp_path / artifact.path)
    trace = get_backend("onnx").trace
    assert trace is not None
    found = {}
    feeds = {spec.name: subject.example[spec.name].numpy() for spec in artifact.inputs}
    trace(tmp_path / artifact.path, artifact, feeds, lambda traced: found.setdefault(traced.module, traced))
    rows = feeds["input_ids"].size
    layer = found["encoder.layer.1.intermediate.dense"]
    assert (layer.operation, layer.value.shape[0]) == ("Gemm", rows)
