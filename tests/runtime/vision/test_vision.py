"""Pictures become arrays as the manifest's steps say; what is no picture is refused in words."""

import io

import numpy as np
import pytest
from palmtop.runtime.errors import DamagedError, RequestError
from palmtop.runtime.vision import ImageProcessor, load_image
from palmtop.runtime.vision.resample import antialiased, bicubic, bilinear
from palmtop.runtime.vision.sizes import nearest
from PIL import Image

STEPS = [
    {"step": "resize", "rule": "shortest_edge", "edge": 8, "resample": "bicubic"},
    {"step": "center_crop", "height": 8, "width": 8},
    {"step": "rescale", "factor": 1 / 255},
]


def processor(*steps, inputs=("pixel_values",)) -> ImageProcessor:
    return ImageProcessor({"inputs": list(inputs), "steps": list(steps) or STEPS})


def test_a_file_its_bytes_an_image_and_an_array_give_the_same(tmp_path):
    image = Image.linear_gradient("L").resize((30, 20)).convert("RGB")
    image.save(tmp_path / "picture.png")
    kinds = [tmp_path / "picture.png", (tmp_path / "picture.png").read_bytes(), image, np.asarray(image)]
    first, *others = [processor()(kind)["pixel_values"] for kind in kinds]
    assert first.shape == (1, 3, 8, 8)
    assert first.dtype == np.float32
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_a_picture_is_turned_as_its_orientation_says():
    image, exif = Image.new("RGB", (30, 20)), Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    image.save(data, "JPEG", exif=exif)
    assert load_image(data.getvalue()).size == (20, 30)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("nowhere.png", RequestError),
        (b"no picture", DamagedError),
        (np.zeros((4, 4, 3), np.float32), RequestError),
        (np.zeros((4, 4, 2), np.uint8), RequestError),
        (7, RequestError),
    ],
)
def test_what_is_no_picture_is_refused(source, error):
    with pytest.raises(error):
        processor()(source)


def test_a_truncated_file_is_damaged():
    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(data, "PNG")
    with pytest.raises(DamagedError, match="cannot be read"):
        processor()(data.getvalue()[:1000])


def test_a_step_of_a_later_version_is_refused_not_skipped():
    with pytest.raises(DamagedError, match="sharpen"):
        processor({"step": "sharpen"})(np.zeros((4, 4, 3), np.uint8))


def test_a_step_without_its_parameters_is_refused():
    with pytest.raises(DamagedError, match="mean"):
        processor({"step": "normalize", "std": [1, 1, 1]})(np.zeros((4, 4, 3), np.uint8))


def test_several_sizes_without_a_mask_are_refused():
    with pytest.raises(RequestError, match="different sizes"):
        processor({"step": "rescale", "factor": 1.0})([np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)])


def test_a_mask_says_what_is_picture():
    pad = {"step": "pad", "height": 6, "width": 8, "position": "start"}
    found = processor(pad, inputs=("pixel_values", "pixel_mask"))(np.full((4, 5, 3), 9, np.uint8))
    assert found["pixel_values"].shape == (1, 3, 6, 8)
    assert found["pixel_mask"][0, :4, :5].all()
    assert found["pixel_mask"].sum() == 20


@pytest.mark.parametrize(("height", "width"), [(5, 7), (40, 23), (11, 9), (1, 1)])
@pytest.mark.parametrize(("ours", "mode"), [(bilinear, "bilinear"), (bicubic, "bicubic"), (antialiased, "bilinear")])
def test_maps_are_resampled_as_torch_does_it(ours, mode, height, width):
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=(2, 3, 11, 17)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values), (height, width), mode=mode, align_corners=False, antialias=ours is antialiased
    )
    np.testing.assert_allclose(ours(values, height, width), expected.numpy(), atol=1e-5)


def test_a_side_may_be_a_multiple_of_a_fraction():
    step = {"height": 384, "width": 512, "multiple": 1 / 32, "keep_aspect_ratio": True}
    assert nearest((480, 640), step) == (384, 512)
    assert all(isinstance(side, int) for side in nearest((481, 643), step))
