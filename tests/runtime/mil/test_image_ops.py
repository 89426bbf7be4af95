"""Resizing and sampling agree with PyTorch, and with the documented grids where PyTorch has none."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from palmtop.runtime.mil.ops import image_resizing as resizing
from palmtop.runtime.mil.ops.image_sampling import affine, crop_resize, crop_resize_ios17, resample


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


SIZES = [(10, 22), (4, 9), (5, 7), (1, 1), (3, 14)]


@pytest.mark.parametrize("size", SIZES)
def test_bilinear_is_pytorchs(size):
    x = normal(2, 3, 5, 7)
    for mode, align in (("STRICT_ALIGN_CORNERS", True), ("UNALIGN_CORNERS", False)):
        theirs = F.interpolate(torch.tensor(x), size, mode="bilinear", align_corners=align).numpy()
        np.testing.assert_allclose(resizing.resize_bilinear(x, *size, mode), theirs, atol=1e-5)
        np.testing.assert_allclose(resizing.resize(x, (9, *size), 2, "LINEAR", mode), theirs, atol=1e-5)


@pytest.mark.parametrize("scale", [(3, 4), (2.5, 2.0), (0.5, 0.75)])
@pytest.mark.parametrize("align", [False, True])
def test_upsample_bilinear_recomputes_its_scale(scale, align):
    x = normal(1, 2, 7, 9)
    theirs = F.interpolate(
        torch.tensor(x), scale_factor=scale, mode="bilinear", align_corners=align, recompute_scale_factor=True
    )
    ours = resizing.upsample_bilinear(x, np.float32(scale[0]), np.float32(scale[1]), align)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_upsample_bilinear_without_half_pixel_centers():
    x = np.array([1, 2], np.float32).reshape(1, 1, 1, 2)
    ours = resizing.upsample_bilinear(x, 2, 3, align_corners=False, half_pixel_centers=False)
    np.testing.assert_allclose(ours.ravel(), [1, 4 / 3, 5 / 3, 2, 2, 2] * 2, atol=1e-6)
    with pytest.raises(ValueError, match="cannot both"):
        resizing.upsample_bilinear(x, 2, 3, align_corners=True, half_pixel_centers=True)


@pytest.mark.parametrize(
    ("mode", "five", "six"),
    [
        ("UNALIGN_CORNERS", [0, 0.1, 0.5, 0.9, 1], [0, 0, 1 / 3, 2 / 3, 1, 1]),
        ("STRICT_ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1], [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ("ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1], [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ("DEFAULT", [0, 0.4, 0.8, 1, 1], [0, 1 / 3, 2 / 3, 1, 1, 1]),
        ("OFFSET_CORNERS", [0.1, 0.3, 0.5, 0.7, 0.9], [1 / 12, 0.25, 5 / 12, 7 / 12, 0.75, 11 / 12]),
    ],
)
def test_grids_are_those_of_the_documentation(mode, five, six):
    np.testing.assert_allclose(resizing.grid(mode, 2, 5), five, atol=1e-12)
    np.testing.assert_allclose(resizing.grid(mode, 2, 6), six, atol=1e-12)


def test_one_sample_is_in_the_middle_only_where_the_mode_says_so():
    first = {mode: resizing.grid(mode, 5, 1)[0] for mode in resizing.SAMPLING_MODES}
    assert first == {
        "STRICT_ALIGN_CORNERS": 0,
        "ALIGN_CORNERS": 2,
        "DEFAULT": 0,
        "OFFSET_CORNERS": 2,
        "UNALIGN_CORNERS": 2,
    }


@pytest.mark.parametrize("size", SIZES)
def test_nearest_neighbours_are_pytorchs_two_kinds(size):
    x = normal(2, 3, 5, 7)
    corner = F.interpolate(torch.tensor(x), size, mode="nearest").numpy()
    centre = F.interpolate(torch.tensor(x), size, mode="nearest-exact").numpy()
    scales = [np.float32((new + 1e-4) / old) for new, old in zip(size, (5, 7), strict=True)]
    np.testing.assert_array_equal(resizing.upsample_nearest_neighbor(x, *scales), corner)
    np.testing.assert_array_equal(resizing.resize_nearest_neighbor(x, *size), centre)
    np.testing.assert_array_equal(resizing.resize(x, size, np.uint32(2), "NEAREST_NEIGHBOR"), centre)


def test_resize_keeps_zero_dimensions_and_integers():
    x = np.arange(12, dtype=np.int32).reshape(1, 3, 4)
    result = resizing.resize(x, np.array([0, 7]), 2, "LINEAR", "STRICT_ALIGN_CORNERS")
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result[0, 0], [0, 0, 1, 1, 2, 2, 3])
    with pytest.raises(ValueError, match="do not fit"):
        resizing.resize(x, [1, 1, 1, 5], 2)
    with pytest.raises(ValueError, match="CUBIC"):
        resizing.resize(x, [3, 5], 2, "CUBIC")


def test_crop_cuts_and_refuses_more_than_there_is():
    x = normal(1, 2, 5, 6)
    np.testing.assert_array_equal(resizing.crop(x, [0, 1], [2, 1]), x[:, :, :4, 2:5])
    with pytest.raises(ValueError, match="does not fit"):
        resizing.crop(x, [3, 3], [0, 0])


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["constant", "border", "reflection"])
def test_resample_is_pytorchs_grid_sample(mode, padding, align):
    x = normal(2, 3, 5, 7)
    points = np.random.default_rng(5).uniform(-3, 3, (2, 4, 6, 2)).astype(np.float32)
    theirs = F.grid_sample(
        torch.tensor(x), torch.tensor(points), mode, "zeros" if padding == "constant" else padding, align
    )
    # PyTorch reflects about the centres of the border pixels or about their edges, by align_corners.
    ours = "symmetric" if padding == "reflection" and not align else padding
    result = resample(x, points, mode, ours, 0.0, "normalized_minus_one_to_one", align)
    np.testing.assert_allclose(result, theirs.numpy(), atol=2e-5)
    halves = resample(x, (points + 1) / 2, mode, ours, 0.0, "normalized_zero_to_one", align)
    np.testing.assert_allclose(halves, theirs.numpy(), atol=2e-4)


def test_resample_pads_with_the_value_and_takes_integer_pixels():
    x = normal(1, 2, 3, 4)
    points = np.array([[[[0, 0], [3, 2], [4, 0], [-1, -1]]]], np.int8)
    ours = resample(x, points, "nearest", "constant", 6.5, "unnormalized", False)
    np.testing.assert_array_equal(ours[0, :, 0], np.stack([x[0, :, 0, 0], x[0, :, 2, 3], [6.5] * 2, [6.5] * 2], 1))


@pytest.mark.parametrize("align", [False, True])
def test_affine_is_pytorchs_affine_grid(align):
    x, matrix = normal(2, 3, 5, 7), normal(2, 2, 3)
    where = F.affine_grid(torch.tensor(matrix), [2, 3, 4, 6], align_corners=align)
    theirs = F.grid_sample(torch.tensor(x), where, align_corners=align).numpy()
    options = "bilinear", "constant", 0.0, "normalized_minus_one_to_one", align
    np.testing.assert_allclose(affine(x, matrix.reshape(2, 6), 4, 6, *options), theirs, atol=1e-5)


IMAGES = np.stack([np.arange(1, 17), np.arange(101, 117)]).astype(np.float32).reshape(2, 1, 4, 4)


def test_crop_resize_of_every_image_and_of_one():
    box = np.array([1, 1, 2, 2], np.float32)
    every = crop_resize(IMAGES, box.reshape(1, 1, 4, 1, 1), 2, 2, sampling_mode="ALIGN_CORNERS")
    np.testing.assert_array_equal(every.reshape(2, 4), [[6, 7, 10, 11], [106, 107, 110, 111]])
    one = crop_resize(IMAGES, np.array([1, *box]).reshape(1, 1, 5, 1, 1), 2, 2, sampling_mode="ALIGN_CORNERS")
    np.testing.assert_array_equal(one[:, 0, 0], [[[106, 107], [110, 111]]])
    new = crop_resize_ios17(IMAGES, box[None], np.array([1]), 2, 2, sampling_mode="ALIGN_CORNERS")
    np.testing.assert_array_equal(new, one[:, 0])


def test_crop_resize_runs_backwards_and_takes_the_middle():
    box = np.array([[2, 2, 1, 1]], np.float32)
    back = crop_resize_ios17(IMAGES, box, None, 2, 2, sampling_mode="ALIGN_CORNERS")
    np.testing.assert_array_equal(back.ravel(), [11, 10, 7, 6])
    middle = crop_resize_ios17(IMAGES, box, None, 1, 1, sampling_mode="ALIGN_CORNERS")
    np.testing.assert_array_equal(middle.ravel(), [8.5])


def test_crop_resize_pads_beyond_the_image_except_with_unaligned_corners():
    boxes = np.array([[0.1, 0.3, 1.3, 1.0], [0.0, 0.4, 0.6, 0.7]], np.float32)
    ours = crop_resize_ios17(IMAGES, boxes, np.array([0, 0]), 2, 2, True, sampling_mode="ALIGN_CORNERS", pad_value=-5.0)
    np.testing.assert_allclose(ours.reshape(2, 4), [[3.1, 5.2, -5, -5], [2.2, 3.1, 9.4, 10.3]], atol=1e-5)
    far = np.array([[2, 2, 1, 1]], np.float32)
    mirrored = crop_resize_ios17(IMAGES, far, None, 2, 2, True, sampling_mode="UNALIGN_CORNERS")
    np.testing.assert_array_equal(mirrored.ravel(), [3.5, 5.5, 11.5, 13.5])


def test_the_last_pixel_of_a_normalized_box_is_never_lost_to_rounding():
    image = np.ones((1, 1, 641, 33), np.float32)
    rng = np.random.default_rng(0)
    for count in (3, 7, 10, 49):
        boxes = np.concatenate([rng.random((50, 2)), np.ones((50, 2))], axis=1).astype(np.float32)
        ours = crop_resize_ios17(image, boxes, np.zeros(50), count, count, True, sampling_mode="ALIGN_CORNERS")
        assert ours.min() == 1


@pytest.mark.parametrize(
    ("mode", "box"),
    [
        ("CORNERS_HEIGHT_FIRST", [0, 1, 2, 3]),
        ("CORNERS_WIDTH_FIRST", [1, 0, 3, 2]),
        ("CENTER_SIZE_HEIGHT_FIRST", [1, 2, 2, 2]),
        ("CENTER_SIZE_WIDTH_FIRST", [2, 1, 2, 2]),
    ],
)
def test_every_way_to_write_a_box(mode, box):
    ours = crop_resize_ios17(
        IMAGES,
        np.array([box], np.float32) * 2,
        None,
        3,
        3,
        spatial_scale=0.5,
        box_coordinate_mode=mode,
        sampling_mode="STRICT_ALIGN_CORNERS",
    )
    np.testing.assert_allclose(ours[0, 0], IMAGES[0, 0, 0:3, 1:4])


def test_a_box_of_an_absent_image_is_an_error():
    with pytest.raises(IndexError, match="box indices"):
        crop_resize_ios17(IMAGES, np.zeros((1, 4), np.float32), np.array([2]))


def test_offset_corners_is_roi_align_with_one_sample_a_bin():
    torchvision_rule = (np.arange(3) + 0.5) * (2.7 - 0.4) / 3 + 0.4
    boxes = np.array([[0.4, 0.4, 2.7, 2.7]], np.float32)
    ours = crop_resize_ios17(IMAGES, boxes, None, 3, 3, sampling_mode="OFFSET_CORNERS")[0, 0]
    np.testing.assert_allclose(ours, 1 + 4 * torchvision_rule[:, None] + torchvision_rule[None], atol=1e-5)
