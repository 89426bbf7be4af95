"""Any `torch.nn.Module` becomes a verified bundle, with named inputs and outputs and the axes that it lets vary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from palmtop.export import export_module
from palmtop.runtime.bundle import Bundle
from palmtop.runtime.errors import PalmtopError, RequestError, UnsupportedError
from palmtop.runtime.manifest import Dim
from palmtop.runtime.verify import verify_bundle
from torch import nn

TARGETS = ("onnx", "coreml", "executorch")


class Perceptron(nn.Module):
    """Two inputs, two outputs, one of them a sum over the features."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 16), nn.Linear(3, 16), nn.Linear(16, 4)

    def forward(self, features, *, context):
        hidden = torch.relu(self.first(features)) * torch.sigmoid(self.second(context))
        return {"scores": self.out(hidden), "energy": hidden.sum(dim=-1)}


class Tagger(nn.Module):
    """Embedding, bidirectional LSTM, a score for each of five tags."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 12)
        self.lstm = nn.LSTM(12, 8, batch_first=True, bidirectional=True)
        self.out = nn.Linear(16, 5)

    def forward(self, ids):
        return self.out(self.lstm(self.embedding(ids))[0])


def seeded(make) -> nn.Module:
    torch.manual_seed(0)
    return make()


def convolutions() -> nn.Module:
    """A small image classifier, with batch statistics as after training."""
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    with torch.no_grad():
        layers(torch.randn(16, 3, 16, 16) * 2 + 1)
    return layers


IMAGE = {"image": torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))}
ROWS = {"features": torch.randn(3, 6), "context": torch.randn(3, 3)}
BATCH = {"features": {0: "batch"}, "context": {0: "batch"}}
IDS = {"ids": torch.arange(7).reshape(1, 7) * 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made("cnn")`: the module and its finished bundle with all three targets, made once."""
    recipes = {
        "cnn": (convolutions, IMAGE, {"output_names": ["logits"]}),
        "mlp": (Perceptron, ROWS, {"dynamic_axes": BATCH, "output_names": ["scores", "energy"], "license": "mit"}),
        "tagger": (Tagger, IDS, {}),
    }
    done: dict[str, tuple] = {}

    def make(name: str):
        if name not in done:
            recipe, example, options = recipes[name]
            module = seeded(recipe)
            done[name] = module, export_module(module, example, tmp_path_factory.mktemp(name) / "x.bundle", **options)
        return done[name]

    return make


def eager(module: nn.Module, *arguments, **named) -> list[np.ndarray]:
    with torch.no_grad():
        result = module.eval()(*arguments, **named)
    values = list(result.values()) if isinstance(result, dict) else [result]
    return [value.numpy() for value in values]


@pytest.mark.parametrize("target", TARGETS)
def test_a_convolutional_network(made, target):
    module, result = made("cnn")
    image = torch.rand(1, 3, 16, 16) * 4
    found = Bundle.open(result.path).open_session(target).run({"image": image.numpy()})
    assert set(found) == {"logits"}
    np.testing.assert_allclose(found["logits"], eager(module, image)[0], atol=2e-5)


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("target", TARGETS)
def test_a_perceptron_with_a_dynamic_batch(made, target, rows):
    module, result = made("mlp")
    features, context = torch.randn(rows, 6), torch.randn(rows, 3)
    session = Bundle.open(result.path).open_session(target)
    found = session.run({"features": features.numpy(), "context": context.numpy()})
    scores, energy = eager(module, features, context=context)
    np.testing.assert_allclose(found["scores"], scores, atol=2e-5)
    np.testing.assert_allclose(found["energy"], energy, atol=2e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_a_recurrent_tagger(made, target):
    module, result = made("tagger")
    ids = torch.randint(0, 50, (1, 7))
    found = Bundle.open(result.path).open_session(target).run({"ids": ids.numpy()})
    np.testing.assert_allclose(found["output"], eager(module, ids)[0], atol=2e-5)


@pytest.mark.parametrize("name", ["cnn", "mlp", "tagger"])
def test_the_bundle_is_verified_and_its_golden_vectors_verify_it_again(made, name):
    _, result = made(name)
    assert result.report.passed
    assert {entry.target: entry.status for entry in result.report.artifacts} == dict.fromkeys(TARGETS, "passed")
    bundle = Bundle.open(result.path)
    bundle.check_files()
    report = verify_bundle(bundle)
    assert report.passed
    assert report.tokenizer is None
    assert all(entry.cases == 3 for entry in report.artifacts)


def test_the_manifest_of_a_module(made):
    _, result = made("mlp")
    manifest = Bundle.open(result.path).manifest
    assert (manifest.task, manifest.tokenizer) == ("module", None)
    assert (manifest.source.id, manifest.source.architecture, manifest.source.license) == ("Perceptron",) * 2 + ("mit",)
    onnx = manifest.parts("onnx")[0]
    assert [spec.name for spec in onnx.inputs] == ["features", "context"]
    assert [spec.name for spec in onnx.outputs] == ["scores", "energy"]
    assert all(spec.dims[0].symbol == "batch" for spec in (*onnx.inputs, *onnx.outputs))
    assert not (result.path / "tokenizer").exists()


def test_the_hash_is_that_of_the_parameters(tmp_path, made):
    module, result = made("mlp")
    other = seeded(Perceptron)
    with torch.no_grad():
        other.out.bias[0] += 1
    changed = export_module(other, ROWS, tmp_path / "other.bundle", to=["coreml"], dynamic_axes=BATCH)
    assert changed.manifest.source.weights_sha256 != result.manifest.source.weights_sha256
    assert changed.manifest.identity != result.manifest.identity
    assert not module.training


def test_constant_axes_are_said_to_be_constant(made):
    assert any("dynamic_axes" in note for note in made("cnn")[1].notes)
    assert not any("dynamic_axes" in note for note in made("mlp")[1].notes)


def test_inputs_of_the_users_own_are_verified_on(tmp_path):
    own = [{"image": torch.full((1, 3, 16, 16), value)} for value in (0.0, 1.0, -3.0, 100.0)]
    result = export_module(seeded(convolutions), IMAGE, tmp_path / "x.bundle", to=["coreml"], verify_inputs=own)
    assert [entry.cases for entry in result.report.artifacts] == [4]
    golden = Bundle.open(result.path).golden()
    np.testing.assert_array_equal(golden[1].feeds()["image"], own[1]["image"].numpy())


def test_a_range_is_kept_and_its_ends_work(tmp_path):
    axes = {"features": {0: Dim(symbol="rows", min=2, max=12)}, "context": {0: Dim(symbol="rows", min=2, max=12)}}
    result = export_module(seeded(Perceptron), ROWS, tmp_path / "x.bundle", to=["onnx"], dynamic_axes=axes)
    assert result.manifest.parts("onnx")[0].inputs[0].dims[0] == Dim(symbol="rows", min=2, max=12)
    session = Bundle.open(result.path).open_session("onnx")
    for rows in (2, 12):
        assert session.run({"features": np.zeros((rows, 6)), "context": np.zeros((rows, 3))})["output_0"].shape == (
            rows,
            4,
        )
    with pytest.raises(RequestError, match="features"):
        session.run({"features": np.zeros((13, 6)), "context": np.zeros((13, 3))})


# --- wrong requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "options", "says"),
    [
        ({}, {}, "example_inputs"),
        ({"features": ROWS["features"]}, {}, "context"),
        ({**ROWS, "extra": torch.zeros(1)}, {}, "extra"),
        ({"features": torch.zeros(3, 5), "context": ROWS["context"]}, {}, "Perceptron"),
        ({"features": [1.0, 2.0], "context": ROWS["context"]}, {}, "features"),
        (ROWS, {"output_names": ["scores"]}, "2 tensors"),
        (ROWS, {"output_names": ["same", "same"]}, "same"),
        (ROWS, {"output_names": ["features", "energy"]}, "features"),
        (ROWS, {"dynamic_axes": {"feature": {0: "batch"}}}, "feature"),
        (ROWS, {"dynamic_axes": {"features": {2: "batch"}}}, "axis 2"),
        (ROWS, {"dynamic_axes": {"features": {0: Dim(symbol="batch", min=5, max=9)}}}, "batch"),
        (ROWS, {"verify_inputs": [{"features": ROWS["features"]}]}, "context"),
        (ROWS, {"verify_inputs": [{**ROWS, "features": torch.zeros(3, 7)}]}, "features"),
        (ROWS, {"verify_inputs": []}, "verify_inputs"),
        (ROWS, {"to": ["tflite"]}, "tflite"),
        (ROWS, {"to": []}, "Known targets"),
        (ROWS, {"quantize": "int2"}, "int2"),
        (ROWS, {"keep_fp32": ["out"]}, "fp16"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_requests_say_what_is_wrong(tmp_path, example, options, says):
    with pytest.raises(RequestError) as caught:
        export_module(seeded(Perceptron), example, tmp_path / "x.bundle", **options)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@torch.library.custom_op("palmtop_test::twist", mutates_args=())
def twist(x: torch.Tensor) -> torch.Tensor:
    return x.flip(-1)


@torch.library.custom_op("palmtop_test::bend", mutates_args=())
def bend(x: torch.Tensor) -> torch.Tensor:
    return x * 2


twist.register_fake(torch.empty_like)
bend.register_fake(torch.empty_like)


class Strange(nn.Module):
    def __init__(self):
        super().__init__()
        self.twister = nn.Sequential(nn.Linear(6, 6), Twister())

    def forward(self, x):
        return bend(self.twister(x))


class Twister(nn.Module):
    def forward(self, x):
        return twist(x)


def test_unknown_operations_are_listed_with_module_and_remedy(tmp_path):
    with pytest.raises(UnsupportedError) as caught:
        export_module(Strange(), {"x": torch.randn(2, 6)}, tmp_path / "x.bundle")
    message = str(caught.value)
    assert message.startswith("6 operations cannot be expressed")
    for target in TARGETS:
        assert f"{target}: palmtop_test.twist.default in twister.1" in message
        assert f"{target}: palmtop_test.bend.default in the model itself" in message
    assert message.count("Remedy:") == 6
    assert list(tmp_path.iterdir()) == []


class Branching(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1


def test_control_flow_on_data_cannot_be_captured(tmp_path):
    with pytest.raises(UnsupportedError) as caught:
        export_module(Branching(), {"x": torch.randn(2, 6)}, tmp_path / "x.bundle")
    assert "control flow" in str(caught.value)
    assert "Remedy" in str(caught.value)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return x + self.calls


def test_a_module_that_keeps_state_is_refused(tmp_path):
    with pytest.raises(UnsupportedError) as caught:
        export_module(Counting(), {"x": torch.randn(2, 6)}, tmp_path / "x.bundle")
    assert "calls" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_a_module_itself_are_not_hidden(tmp_path):
    class Broken(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError("inside")

    with pytest.raises(PalmtopError, match="inside"):
        export_module(Broken(), {"x": torch.randn(2)}, tmp_path / "x.bundle")


class Noisy(nn.Module):
    """Attention without dropout, which draws nothing, and noise, which does."""

    def __init__(self, noise: bool):
        super().__init__()
        self.noise = noise

    def forward(self, x):
        x = nn.functional.scaled_dot_product_attention(x, x, x)
        return x + torch.rand_like(x) if self.noise else x


def test_a_model_that_draws_random_numbers_is_refused(tmp_path):
    example = {"x": torch.randn(2, 2, 4, 8)}
    calm = export_module(Noisy(noise=False), example, tmp_path / "calm.bundle", to=["onnx"])
    assert calm.report.artifacts[0].status == "passed"
    with pytest.raises(UnsupportedError, match="draws random numbers"):
        export_module(Noisy(noise=True), example, tmp_path / "noisy.bundle", to=["onnx"])
