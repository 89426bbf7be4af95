"""Static activations in Core ML packages: ranges found by running the model, inputs rounded as `quantize` says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from palmtop.export.targets import Options, get_target
from palmtop.export.targets.coreml_calibrate import calibrated
from palmtop.quantize.scheme import Scheme
from palmtop.runtime.errors import RequestError
from palmtop.runtime.manifest import Dim
from palmtop.runtime.mil import Program

from .coreml_models import BATCH, IDENTITY, Call, captured_module, kinds
from .integers import compressed, with_integers

TARGET = get_target("coreml")
STATIC = Scheme(8, activations="static")


def feeds(count, scale=1.0, shape=(1, 64)):
    random = np.random.default_rng(count)
    return [{"x": (scale * random.standard_normal(shape)).astype(np.float32)} for _ in range(count)]


@pytest.fixture(scope="module")
def layers():
    """Two layers on one input, and one on what they give."""
    torch.manual_seed(2)
    modules = {"query": torch.nn.Linear(64, 96), "key": torch.nn.Linear(64, 96), "last": torch.nn.Linear(96, 64)}
    return captured_module(
        Call(lambda self, x: self.last(torch.relu(self.query(x)) * torch.sigmoid(self.key(x))), **modules),
        (BATCH, Dim(size=64)),
    )


def planned(quantized, compute="fp32"):
    artifact = TARGET.plan(quantized, Options(precision="int8"))
    return dataclasses.replace(artifact, quantization={"compute": compute})


def lowered(quantized, artifact, path):
    TARGET.lower(quantized, artifact, IDENTITY, path)
    return Program.load(path)


def rounded(values, low, high, dtype=np.float32):
    """By hand: the whole number of steps from the zero point, in -128..127, and back."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = dtype((high - low) / 255)
    if np.float64(scale) * 255 < high - low:
        scale = np.nextafter(scale, dtype(np.inf))
    zero = round(-128 - low / float(scale))
    steps = np.clip(np.rint(values / np.float32(scale)) + zero, -128, 127)
    return ((steps - zero) * np.float32(scale)).astype(np.float32)


def test_ranges_are_those_of_what_each_layer_reads(layers):
    quantized = with_integers(layers, STATIC)
    data = feeds(5)
    ranges = calibrated(quantized, planned(quantized), data).quantization["input_ranges"]
    inputs = np.concatenate([feed["x"] for feed in data])
    assert ranges["query.weight"] == ranges["key.weight"] == [float(inputs.min()), float(inputs.max())]
    state = quantized.program.state_dict
    hidden = np.maximum(_linear(inputs, state, "query"), 0) / (1 + np.exp(-_linear(inputs, state, "key")))
    np.testing.assert_allclose(ranges["last.weight"], [hidden.min(), hidden.max()], rtol=1e-5)


def _linear(x, state, name):
    return x @ state[f"{name}.weight"].detach().numpy().T + state[f"{name}.bias"].detach().numpy()


@pytest.mark.parametrize(("compute", "share"), [("fp32", 1e-3), ("fp16", 0.5)])
def test_the_package_computes_what_rounding_by_hand_gives(layers, tmp_path, compute, share):
    """Its distance from the model rounded by hand is a small share of what rounding does to the model.

    (In fp16 a value between two steps may go to the other one.)
    """
    quantized = with_integers(layers, STATIC)
    artifact = calibrated(quantized, planned(quantized, compute), feeds(20))
    ranges, state = artifact.quantization["input_ranges"], quantized.program.state_dict
    program = lowered(quantized, artifact, tmp_path / "m.mlpackage")
    dtype = np.float16 if compute == "fp16" else np.float32

    def by_hand(x, rounding):
        x = rounding(x, *ranges["query.weight"], dtype)
        hidden = np.maximum(_linear(x, state, "query"), 0) / (1 + np.exp(-_linear(x, state, "key")))
        return _linear(rounding(hidden, *ranges["last.weight"], dtype), state, "last")

    for feed in feeds(4, scale=1.5):  # some beyond the range, where rounding clips
        expected, exact = by_hand(feed["x"], rounded), by_hand(feed["x"], lambda values, *_: values)
        assert np.linalg.norm(program.predict(feed)["y"] - expected) < share * np.linalg.norm(exact - expected)


def test_inputs_are_rounded_once_for_all_layers_that_read_them(layers, tmp_path):
    quantized = with_integers(layers, STATIC)
    artifact = calibrated(quantized, planned(quantized), feeds(2))
    program = lowered(quantized, artifact, tmp_path / "m.mlpackage")
    assert artifact.minimum_os["ios"] == "17.0"
    assert kinds(program).count("quantize") == kinds(program).count("dequantize") == 2
    producers = {name: operation.type for operation in program.operations for name, _ in operation.outputs}
    for operation in program.operations:
        if operation.type == "linear":
            assert producers[operation.inputs["x"][0]] == "dequantize"
        if operation.type == "dequantize":
            assert producers[operation.inputs["input"][0]] == "quantize"
    assert len(compressed(tmp_path / "m.mlpackage")) == 3


def test_only_layers_with_static_activations_are_rounded(layers, tmp_path):
    quantized = with_integers(layers, {"query.weight": Scheme(8, activations="dynamic"), "last.weight": STATIC})
    artifact = calibrated(quantized, planned(quantized, "fp16"), feeds(2))
    assert list(artifact.quantization["input_ranges"]) == ["last.weight"]
    assert kinds(lowered(quantized, artifact, tmp_path / "m.mlpackage")).count("quantize") == 1


def test_convolutions_read_rounded_inputs(tmp_path):
    layer = torch.nn.Conv2d(16, 32, 3)
    sizes = [Dim(size=size) for size in (16, 8, 8)]
    plain = captured_module(Call(lambda self, x: self.layer(x), layer=layer), (BATCH, *sizes))
    quantized = with_integers(plain, STATIC)
    data = feeds(3, shape=(1, 16, 8, 8))
    artifact = calibrated(quantized, planned(quantized), data)
    got = lowered(quantized, artifact, tmp_path / "m.mlpackage").predict(data[0])["y"]
    x = torch.from_numpy(rounded(data[0]["x"], *artifact.quantization["input_ranges"]["layer.weight"]))
    expected = quantized.program.module()(x=x).detach().numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_an_artifact_of_one_length_is_calibrated_on_any(tmp_path):
    layer, sequence = torch.nn.Linear(64, 96), Dim(symbol="sequence", min=2, max=48)
    plain = captured_module(Call(lambda self, x: self.layer(x), layer=layer), (BATCH, sequence, Dim(size=64)))
    quantized = with_integers(plain, STATIC)
    artifact = TARGET.plan(quantized, Options(precision="int8", lengths=(8,)))
    data = feeds(2, shape=(1, 5, 64)) + feeds(3, shape=(1, 11, 64))
    calibrated_artifact = TARGET.calibrate(quantized, artifact, data)
    assert calibrated_artifact.inputs == artifact.inputs
    assert list(calibrated_artifact.quantization["input_ranges"]) == ["layer.weight"]
    program = lowered(quantized, calibrated_artifact, tmp_path / "m.mlpackage")
    assert program.predict(feeds(1, shape=(1, 8, 64))[0])["y"].shape == (1, 8, 96)


def test_a_plan_without_static_activations_needs_no_ranges(layers):
    quantized = with_integers(layers, Scheme(8))
    artifact = planned(quantized)
    assert calibrated(quantized, artifact, []) is artifact


# --- bad data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "needs at least one input"),
        ([{"x": np.full((1, 64), np.nan, np.float32)}], "input x has NaN"),
        ([{"x": np.full((1, 64), np.inf, np.float32)}], "input x has NaN or infinity"),
    ],
)
def test_calibration_data_that_says_nothing_is_refused(layers, data, message):
    quantized = with_integers(layers, STATIC)
    with pytest.raises(RequestError, match=message):
        calibrated(quantized, planned(quantized), data)


def test_calibration_that_makes_the_model_give_nan_is_refused():
    layer = torch.nn.Linear(64, 96)
    plain = captured_module(Call(lambda self, x: self.layer(torch.sqrt(x)), layer=layer), (BATCH, Dim(size=64)))
    quantized = with_integers(plain, STATIC)
    with pytest.raises(RequestError, match="sqrt NaN or infinite"):
        calibrated(quantized, planned(quantized), [{"x": np.full((1, 64), -1, np.float32)}])


def test_lowering_without_ranges_is_refused(layers, tmp_path):
    quantized = with_integers(layers, STATIC)
    with pytest.raises(RequestError, match=r"query\.weight: static activations need the range"):
        lowered(quantized, planned(quantized), tmp_path / "m.mlpackage")


def test_a_range_that_is_none_is_refused(layers, tmp_path):
    quantized = with_integers(layers, STATIC)
    artifact = planned(quantized)
    ranges = {name: [float("nan"), 1.0] for name in ("query.weight", "key.weight", "last.weight")}
    artifact = dataclasses.replace(artifact, quantization={"compute": "fp32", "input_ranges": ranges})
    with pytest.raises(RequestError, match="No range of inputs"):
        lowered(quantized, artifact, tmp_path / "m.mlpackage")


def test_a_table_has_no_input_to_round():
    table = torch.nn.Embedding(96, 64)
    plain = captured_module(
        Call(lambda self, x: self.table(x), table=table), (BATCH, Dim(size=9)), ("y",), dtype="int64"
    )
    quantized = with_integers(plain, STATIC)
    with pytest.raises(RequestError, match=r"table\.weight: no input of a layer.*without activations"):
        calibrated(quantized, planned(quantized), [{"x": np.zeros((1, 9), np.int32)}])
