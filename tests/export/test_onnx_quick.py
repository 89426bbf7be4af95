"""What torch.onnx leaves out for us changes nothing in the file: the same operations, the same numbers, bit for bit."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext

import numpy as np
import onnx as onnx_library
import onnxruntime
import pytest
import torch
from palmtop.export import hf
from palmtop.export.capture import capture, trace_module
from palmtop.export.targets import Options, onnx, onnx_quick
from palmtop.quantize.scheme import Scheme
from palmtop.runtime.manifest import TensorSpec
from torch.onnx._internal.exporter import _fx_passes, _registration

from .executorch_models import BATCH, IDENTITY, capture_checkpoint, size
from .integers import with_integers


def lowered(captured, path):
    onnx.lower(captured, onnx.plan(captured, Options()), IDENTITY, path)
    return path


def traced_again(monkeypatch):
    """Counts how often a program is traced again while it is lowered."""
    times = []
    decompose = _fx_passes.decompose_with_registry
    monkeypatch.setattr(_fx_passes, "decompose_with_registry", lambda *a: times.append(a) or decompose(*a))
    return times


def run_again(monkeypatch):
    """Counts how often a program is run to find operands to be converted."""
    times = []
    convert = _fx_passes.insert_type_promotion_nodes
    monkeypatch.setattr(_fx_passes, "insert_type_promotion_nodes", lambda *a: times.append(a) or convert(*a))
    return times


@pytest.mark.parametrize("model", ["bert", "distilbert", "roberta"])
def test_an_encoder_is_not_traced_again_and_gives_the_same(tmp_path, checkpoint, monkeypatch, model):
    _, captured = capture_checkpoint(checkpoint(model), "text-classification")
    times, runs = traced_again(monkeypatch), run_again(monkeypatch)
    ours = lowered(captured, tmp_path / "quick.onnx")
    assert not times
    assert len(runs) == (model == "roberta")  # whose positions are counted in several dtypes
    monkeypatch.setattr(onnx, "quick", nullcontext)
    theirs = lowered(captured, tmp_path / "slow.onnx")
    assert len(times) == 1

    counts = [Counter(node.op_type for node in onnx_library.load(path).graph.node) for path in (ours, theirs)]
    assert counts[0] == counts[1]
    feeds = {spec.name: np.ones((3, 9), np.int64) for spec in captured.inputs}
    feeds["input_ids"] = np.random.default_rng(0).integers(5, 50, (3, 9))
    feeds["attention_mask"][1, 5:] = 0
    first, second = (onnxruntime.InferenceSession(path).run(None, feeds) for path in (ours, theirs))
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_rewritten_last_operation_is_the_output(tmp_path, checkpoint):
    _, captured = capture_checkpoint(checkpoint("bert", "fill-mask"), "fill-mask")
    path = lowered(with_integers(captured, Scheme(bits=8, activations="dynamic")), tmp_path / "model.onnx")
    assert [value.name for value in onnx_library.load(path).graph.output] == ["logits"]


def test_what_must_be_taken_apart_still_is(tmp_path, monkeypatch):
    class Shrunk(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.softshrink(x)  # torchlib has no translation; PyTorch takes it apart

    spec = TensorSpec("x", "float32", (BATCH, size(4)))
    captured = capture(Shrunk(), {"x": torch.randn(3, 4)}, [spec], ["y"], trace=trace_module)
    times = traced_again(monkeypatch)
    path = lowered(captured, tmp_path / "model.onnx")
    assert len(times) == 1
    x = np.linspace(-3, 3, 8, dtype=np.float32).reshape(2, 4)
    found = onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, torch.nn.functional.softshrink(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_operands_of_several_dtypes_are_converted_still(tmp_path, monkeypatch):
    class Scaled(torch.nn.Module):
        def forward(self, x, n):
            return x * n + n / 2

    specs = [TensorSpec("x", "float32", (BATCH, size(4))), TensorSpec("n", "int64", (BATCH, size(4)))]
    example = {"x": torch.randn(3, 4), "n": torch.arange(12).reshape(3, 4)}
    captured = capture(Scaled(), example, specs, ["y"], trace=trace_module)
    runs = run_again(monkeypatch)
    path = lowered(captured, tmp_path / "model.onnx")
    assert len(runs) == 1
    feeds = {name: value.numpy() for name, value in example.items()}
    found = onnxruntime.InferenceSession(path).run(None, feeds)[0]
    np.testing.assert_allclose(found, Scaled()(*example.values()).numpy(), rtol=1e-6)


def test_the_table_of_operations_is_upstreams_and_nobody_changes_it():
    theirs = _registration.ONNXRegistry.from_torchlib()
    assert onnx_quick.torchlib().functions.keys() == theirs.functions.keys()
    with onnx_quick.quick():
        given = _registration.ONNXRegistry.from_torchlib()
        given.register_op(torch.ops.aten.add.Tensor, lambda x, y: x)
    assert len(given.functions["aten::add.Tensor"]) == len(theirs.functions["aten::add.Tensor"]) + 1
    assert len(onnx_quick.torchlib().functions["aten::add.Tensor"]) == len(theirs.functions["aten::add.Tensor"])
    assert _registration.ONNXRegistry.from_torchlib() is not given


def test_patches_of_models_that_are_not_loaded_are_left_out_while_tracing():
    from transformers.exporters import utils

    before = utils._PATCHES["dynamo"]
    with hf._patches_of_what_is_loaded("dynamo"):
        kept = utils._PATCHES["dynamo"]
        assert {entry[0] for entry in before if not entry[0].startswith("transformers.models.")} <= {
            entry[0] for entry in kept
        }
    assert utils._PATCHES["dynamo"] is before
    assert hf._loaded("torch.Tensor")
    assert not hf._loaded("transformers.models.nowhere.modeling_nowhere.Layer")
    import transformers.models.sew.modeling_sew  # noqa: F401

    assert hf._loaded("transformers.models.sew.modeling_sew.SEWModel")
