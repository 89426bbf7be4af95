"""Packages of every kind that coremltools makes of PyTorch models: PyTorch's results come back."""

import numpy as np
import pytest
from palmtop.runtime.errors import RequestError, UnsupportedError
from palmtop.runtime.mil import Program

ct = pytest.importorskip("coremltools")
torch = pytest.importorskip("torch")

OPSETS = {"iOS15": "CoreML5", "iOS16": "CoreML6", "iOS17": "CoreML7", "iOS18": "CoreML8", "iOS26": "CoreML9"}


class Classifier(torch.nn.Module):
    """Pixels (n, 3, h, w) to 5 probabilities."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Linear(8, 5)

    def forward(self, x):
        return torch.softmax(self.linear(torch.relu(self.conv(x)).mean((2, 3))), -1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Classifier().eval().requires_grad_(False)


def convert(model, path, inputs, target="iOS16", shape=(1, 3, 8, 12), **more):
    """The package of `model`, traced with one random input of `shape`."""
    traced = torch.jit.trace(model, torch.rand(shape))
    converted = ct.convert(traced, inputs=inputs, minimum_deployment_target=getattr(ct.target, target), **more)
    converted.save(str(path))
    return path


def pixels(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


@pytest.mark.parametrize("target", OPSETS)
def test_every_opset_in_its_default_precision(model, tmp_path, target):
    path = convert(model, tmp_path / "m.mlpackage", [ct.TensorType("x", (1, 3, 8, 12))], target)
    program = Program.load(path)
    x = pixels(1, 3, 8, 12)
    (result,) = program.predict({"x": x}).values()
    assert program.opset == OPSETS[target]
    # coremltools gives fp16 programs fp16 outputs from iOS 16 on.
    assert result.dtype == (np.float32 if target == "iOS15" else np.float16)
    np.testing.assert_allclose(result, model(torch.tensor(x)), atol=2e-3)


def test_batch_and_size_between_bounds(model, tmp_path):
    shape = (ct.RangeDim(1, 4), 3, ct.RangeDim(4, 64, default=8), ct.RangeDim(4, 64, default=12))
    program = Program.load(convert(model, tmp_path / "m.mlpackage", [ct.TensorType("x", shape)]))
    assert program.inputs == {"x": None}
    for size in [(1, 3, 8, 12), (4, 3, 64, 4)]:
        (result,) = program.predict({"x": pixels(*size)}).values()
        np.testing.assert_allclose(result, model(torch.tensor(pixels(*size))), atol=2e-3)
    with pytest.raises(RequestError, match=r"\[1\.\.4, 3, 4\.\.64, 4\.\.64\], got \[5, 3, 8, 12\]"):
        program.predict({"x": pixels(5, 3, 8, 12)})


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_images_of_listed_sizes_with_scale_and_bias(model, tmp_path, layout):
    from PIL import Image

    sizes = ct.EnumeratedShapes([(1, 3, 8, 12), (1, 3, 16, 6)])
    image = ct.ImageType("x", sizes, scale=1 / 255, bias=[-0.1, -0.2, -0.3], color_layout=layout)
    program = Program.load(convert(model, tmp_path / "m.mlpackage", [image]))
    for height, width in [(8, 12), (16, 6)]:
        values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        (result,) = program.predict({"x": Image.fromarray(values)}).values()
        channels = values.transpose(2, 0, 1)[None, :: 1 if layout == "RGB" else -1].astype(np.float32) / 255
        expected = model(torch.tensor(channels - np.reshape(np.float32([0.1, 0.2, 0.3]), (1, 3, 1, 1))))
        np.testing.assert_allclose(result, expected, atol=2e-3)
    with pytest.raises(RequestError, match="input x: expected the shape one of"):
        program.predict({"x": Image.new("RGB", (12, 16))})


@pytest.mark.parametrize("labels", [["ant", "bee", "cow", "dog", "eel"], [7, 3, 9, 1, 5]])
def test_classifier(model, tmp_path, labels):
    config = ct.ClassifierConfig(labels, predicted_feature_name="best")
    path = convert(model, tmp_path / "m.mlpackage", [ct.TensorType("x", (1, 3, 8, 12))], classifier_config=config)
    result = Program.load(path).predict({"x": pixels(1, 3, 8, 12)})
    expected = model(torch.tensor(pixels(1, 3, 8, 12)))[0].numpy()
    assert result.pop("best") == labels[expected.argmax()]
    (probabilities,) = result.values()
    assert probabilities == pytest.approx(dict(zip(labels, expected, strict=True)), abs=2e-3)


def test_each_function_of_a_package_of_several(model, tmp_path):
    descriptor = ct.utils.MultiFunctionDescriptor()
    shapes = {"small": (1, 3, 4, 4), "large": (2, 3, 16, 16)}
    for name, shape in shapes.items():
        path = convert(model, tmp_path / f"{name}.mlpackage", [ct.TensorType("x", shape)], "iOS18", shape)
        descriptor.add_function(str(path), "main", name)
    descriptor.default_function_name = "large"
    ct.utils.save_multifunction(descriptor, str(tmp_path / "both.mlpackage"))
    for name, expected in [("small", "small"), ("large", "large"), (None, "large")]:
        program = Program.load(tmp_path / "both.mlpackage", function=name)
        assert program.function == expected
        assert program.inputs == {"x": shapes[expected]}
        (result,) = program.predict({"x": pixels(*shapes[expected])}).values()
        np.testing.assert_allclose(result, model(torch.tensor(pixels(*shapes[expected]))), atol=2e-3)


class Cache(torch.nn.Module):
    """Appends `new` (1, n, 4) to a cache that then holds as many rows as `mask` (1, rows) has, and sums them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(1, 8, 4))

    def forward(self, new, mask):
        end = mask.shape[-1]
        self.cache[:, end - new.shape[1] : end, :] = new
        return self.cache[:, :end, :].sum(1)


def test_a_cache_is_filled_at_once_and_row_by_row(tmp_path):
    length, rows = ct.RangeDim(1, 8), ct.RangeDim(1, 8)
    ct.convert(
        torch.jit.trace(Cache().eval(), (torch.rand(1, 2, 4), torch.zeros(1, 3))),
        inputs=[ct.TensorType("new", (1, length, 4)), ct.TensorType("mask", (1, rows))],
        outputs=[ct.TensorType("sum")],
        states=[ct.StateType(ct.TensorType(shape=(1, 8, 4)), name="cache")],
        minimum_deployment_target=ct.target.iOS18,
    ).save(str(tmp_path / "m.mlpackage"))
    program = Program.load(tmp_path / "m.mlpackage")
    state, values = program.new_state(), pixels(1, 5, 4)
    program.predict({"new": values[:, :3], "mask": np.zeros((1, 3))}, state=state)
    program.predict({"new": values[:, 3:4], "mask": np.zeros((1, 4))}, state=state)
    last = program.predict({"new": values[:, 4:], "mask": np.zeros((1, 5))}, state=state)["sum"]
    np.testing.assert_allclose(last, values.sum(1), rtol=2e-3)
    np.testing.assert_array_equal(state.read_state("cache")[:, :5], values.astype(np.float16))


def test_a_pipeline_is_refused_with_the_way_out(model, tmp_path):
    inputs = [ct.TensorType("x", (1, 3, 8, 12))]
    first = ct.models.MLModel(str(convert(model, tmp_path / "m.mlpackage", inputs, outputs=[ct.TensorType("y")])))
    doubled = torch.jit.trace(torch.nn.Hardtanh(), torch.rand(1, 5))
    second = ct.convert(
        doubled,
        inputs=[ct.TensorType("y", (1, 5))],
        outputs=[ct.TensorType("z")],
        minimum_deployment_target=ct.target.iOS16,
    )
    ct.utils.make_pipeline(first, second).save(str(tmp_path / "p.mlpackage"))
    with pytest.raises(UnsupportedError, match=r"a model of type pipeline.*one by one"):
        Program.load(tmp_path / "p.mlpackage")
