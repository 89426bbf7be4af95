"""Layers whose inputs are rounded row by row in ONNX: which products are made, and how near they come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from palmtop.export.capture import Captured, capture, trace_module
from palmtop.export.targets import Options, onnx_rows
from palmtop.export.targets.onnx import lower, plan
from palmtop.quantize.execute import run
from palmtop.quantize.scheme import Scheme
from palmtop.runtime.backends import get_backend
from palmtop.runtime.manifest import TensorSpec
from palmtop.runtime.session import Session
from torch import nn

from ..quantize.models import TiedHead
from ..quantize.models import captured as captured_words
from .executorch_models import BATCH, IDENTITY, capture_checkpoint, sequence, size
from .integers import with_integers
from .test_onnx_fuse import operations

ROUNDED = Scheme(8, activations="dynamic")


class Projections(nn.Module):
    """Layers of one input, 64 wide: some with a bias, some without, of several widths."""

    def __init__(self, widths: tuple[int, ...], biases: tuple[bool, ...]) -> None:
        super().__init__()
        pairs = zip(widths, biases, strict=True)
        self.layers = nn.ModuleList(nn.Linear(64, width, bias=bias) for width, bias in pairs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) * (place + 1) for place, layer in enumerate(self.layers)], -1)


class Behind(nn.Module):
    """A layer behind an activation function."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(128, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.function(x))


def rounded(module: nn.Module, width: int) -> Captured:
    torch.manual_seed(5)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    module.requires_grad_(False).eval()
    spec = TensorSpec("x", "float32", (BATCH, sequence(40), size(width)))
    program = capture(module, {"x": torch.randn(2, 7, width)}, (spec,), ("y",), trace=trace_module)
    return with_integers(program, ROUNDED)


def lowered(program: Captured, folder: Path) -> Session:
    artifact = plan(program, Options(precision="int8"))
    lower(program, artifact, IDENTITY, folder / artifact.path)
    return Session.open(folder, artifact, IDENTITY, threads=1)


def weights_alone(program: Captured, x: np.ndarray) -> np.ndarray:
    """What the layers give when only their weights are rounded."""
    return run(program.program, {"x": x})[0].numpy()


def rows(width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 9, width)).astype(np.float32)


# --- layers of one input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "biases"),
    [((64, 64, 64), (True, True, True)), ((64, 96, 128, 64), (True, False, True, False)), ((64, 96, 64), (False,) * 3)],
    ids=str,
)
def test_three_layers_of_one_input_are_one_product_that_gives_the_very_same(tmp_path, monkeypatch, widths, biases):
    program = rounded(Projections(widths, biases), 64)
    together = lowered(program, tmp_path / "together")
    monkeypatch.setattr(onnx_rows, "_MERGED", 99)
    apart = lowered(program, tmp_path / "apart")
    assert operations(together.path)["MatMulIntegerToFloat"] == 1
    assert operations(apart.path)["MatMulIntegerToFloat"] == len(widths)
    assert operations(together.path)["Add"] == (1 if any(biases) else 0)
    x = rows(64)
    np.testing.assert_array_equal(together.run({"x": x})["y"], apart.run({"x": x})["y"])


def test_two_layers_of_one_input_stay_two_products(tmp_path):
    session = lowered(rounded(Projections((64, 96), (True, True)), 64), tmp_path)
    assert operations(session.path)["MatMulIntegerToFloat"] == 2


def test_each_layer_of_a_product_is_still_seen_as_its_module(tmp_path):
    program = rounded(Projections((64, 96, 128), (True, True, True)), 64)
    session = lowered(program, tmp_path)
    x, seen = rows(64), {}
    trace = get_backend("onnx").trace
    assert trace is not None
    trace(session.path, session.artifact, {"x": x}, lambda traced: seen.update({traced.module: traced.value.shape}))
    assert {seen[f"layers.{place}"][-1] for place in range(3)} == {64, 96, 128}


def test_a_bias_that_is_computed_is_added_to_its_own_layer(tmp_path):
    class Computed(Projections):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            more = [nn.functional.linear(x, layer.weight, x[0, 0]) for layer in self.layers]
            return torch.cat(more, -1)

    program = rounded(Computed((64, 64, 64), (False,) * 3), 64)
    session = lowered(program, tmp_path)
    assert operations(session.path)["MatMulIntegerToFloat"] == 3
    x = rows(64)
    assert np.abs(session.run({"x": x})["y"] - weights_alone(program, x)).max() < 0.1


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_row_of_zeros_gives_the_bias(tmp_path):
    program = rounded(Projections((64, 64, 64), (True, True, True)), 64)
    x = rows(64)
    x[0, 3] = 0
    actual = lowered(program, tmp_path).run({"x": x})["y"]
    np.testing.assert_array_equal(actual[0, 3], weights_alone(program, x)[0, 3])


@pytest.mark.parametrize("function", [nn.GELU(), nn.GELU("tanh"), nn.ReLU(), nn.SiLU(), nn.Hardswish()], ids=str)
def test_what_is_hardly_below_zero_is_rounded_more_finely(tmp_path, monkeypatch, function):
    program = rounded(Behind(function), 128)
    x = 3 * rows(128)
    expected = weights_alone(program, x)

    def error(name: str) -> float:
        return float(np.square(lowered(program, tmp_path / name).run({"x": x})["y"] - expected).mean())

    fine = error("fine")
    monkeypatch.setattr(onnx_rows, "_FLOORS", {})
    assert fine < 0.6 * error("plain")


@pytest.mark.parametrize("function", [nn.GELU(), nn.GELU("tanh"), nn.ReLU(), nn.SiLU(), nn.Hardswish()], ids=str)
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_nothing_that_an_activation_function_gives_is_cut_off(tmp_path, function, scale):
    """Also in rows where all that is given is the least that the function can give."""
    program = rounded(Behind(function), 128)
    x = scale * rows(128)
    lows = torch.linspace(-4, 0, 4001)
    x[0, :4] = lows[function(lows).argmin()]
    x[1, :4] = -np.abs(x[1, :4])
    expected = weights_alone(program, x)
    actual = lowered(program, tmp_path).run({"x": x})["y"]
    inner = function(torch.from_numpy(x)).numpy()
    step = np.maximum(inner.max(-1, keepdims=True) / 223, -float(function(lows).min()) / 31)
    assert (np.abs(actual - expected) <= 5 * step + 1e-5).all()


def test_rows_are_rounded_in_one_pass_and_zero_points_are_made_once(checkpoint, tmp_path):
    folder = checkpoint("bert", "feature-extraction", config={"hidden_size": 64, "intermediate_size": 128})
    _, program = capture_checkpoint(folder, "feature-extraction")
    quantized = with_integers(program, Scheme(bits=8, activations="dynamic"))
    artifact = plan(quantized, Options())
    path = tmp_path / artifact.path
    lower(quantized, artifact, IDENTITY, path)
    counts = operations(path)
    assert counts["Attention"] == 2
    assert counts["MatMulIntegerToFloat"] == 8  # queries, keys and values are one product
    assert counts["QuantizeLinear"] == 8
    assert counts["ConstantOfShape"] == 2  # what GELU gives has a zero point of its own
    assert not counts["Div"]
    session = Session.open(tmp_path, artifact, IDENTITY, threads=1)
    for batch, length in ((1, 1), (2, 7), (3, 20)):
        feeds = {spec.name: np.ones((batch, length), np.int64) for spec in artifact.inputs}
        feeds["input_ids"] = np.random.default_rng(0).integers(5, 60, (batch, length))
        expected = quantized.program.module()(**{name: torch.from_numpy(value) for name, value in feeds.items()})
        actual = session.run(feeds)["last_hidden_state"]
        similar = torch.nn.functional.cosine_similarity(torch.from_numpy(actual), expected[0], dim=-1)
        assert similar.min() > 0.999
        alone = session.run({name: value[-1:] for name, value in feeds.items()})["last_hidden_state"]
        np.testing.assert_allclose(alone[0], actual[-1], atol=1e-5)  # a row does not depend on its neighbours


# --- a table that is the head too -------------------------------------------------------------------------------------


def test_a_table_that_is_the_head_too_is_stored_once_and_its_sums_never_saturate(tmp_path):
    """Every weight is as large as its pair may be, and so is every input: sums in 16 bits would overflow otherwise."""
    module = TiedHead()
    with torch.no_grad():
        module.table.weight[::2] = 0.8
        module.table.weight[1] = -0.8
    program = with_integers(captured_words(module), ROUNDED)
    session = lowered(program, tmp_path)
    counted = operations(session.path)
    assert (counted["GatherBlockQuantized"], counted["MatMulNBits"], counted["MatMulIntegerToFloat"]) == (1, 1, 0)
    (weight,) = program.quantized.values()
    unsigned = (weight.integers.numpy().astype(np.int16) + 128).astype(np.uint8)
    assert session.path.read_bytes().count(unsigned.tobytes()) == 1
    for x in (np.array([[0, 1, 2, 3]]), np.arange(40)[None]):
        wanted = run(program.program, {"x": x})[0].numpy()
        assert 0 < np.abs(session.run({"x": x})["y"] - wanted).max() < 0.02 * np.abs(wanted).max()
