"""Sampling images at computed points: resample, affine, crop_resize."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..registry import op
from .image_resizing import grid

# --- resample and affine --------------------------------------------------------------------------------------------


def _pixels(points: np.ndarray, size: int, mode: str, align_corners: bool) -> np.ndarray:
    """Coordinates in units of pixels, the centre of the first pixel being 0."""
    if mode == "unnormalized":
        return points
    if mode == "normalized_minus_one_to_one":
        points = (points + np.float32(1)) * np.float32(0.5)
    elif mode != "normalized_zero_to_one":
        raise ValueError(f'coordinates_mode "{mode}" is not known')
    if align_corners:
        return points * np.float32(size - 1)
    return points * np.float32(size) - np.float32(0.5)


def _folded(points: np.ndarray, size: int, mode: str) -> np.ndarray:
    """Coordinates beyond the image brought back into [0, size - 1] ("constant" leaves them where they are)."""
    if mode == "constant":
        return points
    if mode == "reflection":
        if size == 1:
            return np.zeros_like(points)
        span = np.float32(2 * (size - 1))
        away = np.mod(np.abs(points), span)
        points = np.minimum(away, span - away)
    elif mode == "symmetric":
        span = np.float32(2 * size)
        away = np.mod(np.abs(points + np.float32(0.5)), span)
        points = np.minimum(away, span - away) - np.float32(0.5)
    elif mode != "border":
        raise ValueError(f'padding_mode "{mode}" is not known')
    return np.clip(points, 0, size - 1)


def _taken(pixels: np.ndarray, width: int, rows: np.ndarray, columns: np.ndarray, padding: float) -> np.ndarray:
    """pixels [h * w, c] at integer rows and columns [p] -> [p, c]; `padding` outside of the image."""
    inside = (rows >= 0) & (rows < len(pixels) // width) & (columns >= 0) & (columns < width)
    values = pixels[np.where(inside, rows * width + columns, 0).astype(np.intp)]
    values[~inside] = padding
    return values


def _sampled(image: np.ndarray, rows: np.ndarray, columns: np.ndarray, mode: str, padding: float) -> np.ndarray:
    """image [c, h, w] at pixel coordinates [p] -> [c, p], by bilinear interpolation or the nearest pixel.

    The nearest pixel rounds ties to even (coremltools' tests; PyTorch does the same).
    """
    channels, _, width = image.shape
    pixels = np.ascontiguousarray(image.reshape(channels, -1).T)  # whole pixels are read faster than single values
    if mode == "nearest":
        return _taken(pixels, width, np.rint(rows), np.rint(columns), padding).T
    if mode != "bilinear":
        raise ValueError(f'sampling_mode "{mode}" is neither "bilinear" nor "nearest"')
    top, left = np.floor(rows), np.floor(columns)
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    result = _taken(pixels, width, top, left, padding) * ((1 - down) * (1 - right))
    result += _taken(pixels, width, top, left + 1, padding) * ((1 - down) * right)
    result += _taken(pixels, width, top + 1, left, padding) * (down * (1 - right))
    result += _taken(pixels, width, top + 1, left + 1, padding) * (down * right)
    return result.T


@op("resample")
def resample(
    x: np.ndarray,
    coordinates: np.ndarray,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> np.ndarray:
    """x [b, c, h, w] at coordinates [b, h2, w2, (x, y)], which are folded back first and interpolated then.

    With "constant", each neighbour outside of the image is `padding_value`. Coordinates that are not finite are
    outside.
    """
    batch, height, width, _ = coordinates.shape
    points = np.nan_to_num(np.asarray(coordinates, np.float32), nan=-1e9, posinf=1e9, neginf=-1e9)
    points = points.reshape(batch, height * width, 2)
    located = []
    for axis, size in ((1, x.shape[2]), (0, x.shape[3])):
        pixels = _pixels(points[..., axis], size, coordinates_mode.lower(), bool(align_corners))
        located.append(_folded(pixels, size, padding_mode.lower()))
    result = np.empty((batch, x.shape[1], height * width), np.float32)
    for n, (image, rows, columns) in enumerate(zip(x, *located, strict=True)):
        result[n] = _sampled(image, rows, columns, sampling_mode.lower(), float(padding_value))
    return result.reshape(batch, x.shape[1], height, width)


@op("affine")
def affine(
    x: np.ndarray,
    transform_matrix: np.ndarray,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> np.ndarray:
    """x [b, c, h, w] resampled where [a0 a1 a2 b0 b1 b2] sends the normalized points of the output.

    Core ML takes align_corners=True only; False here is PyTorch's affine_grid.
    """
    height, width = int(output_height), int(output_width)
    if coordinates_mode.lower() != "normalized_minus_one_to_one":
        raise ValueError(f'affine: coordinates_mode "{coordinates_mode}" is not defined')
    ends = []
    for count in (height, width):
        edge = 1.0 if align_corners else 1 - 1 / count
        ends.append(np.linspace(-edge, edge, count, dtype=np.float32) if count > 1 else np.array([-edge], np.float32))
    down, across = np.meshgrid(*ends, indexing="ij")
    base = np.stack([across, down, np.ones_like(down)], axis=-1)
    matrix = np.asarray(transform_matrix, np.float32).reshape(-1, 2, 3)
    points = np.einsum("hwk,bjk->bhwj", base, matrix)
    points = np.broadcast_to(points, (len(x), height, width, 2))
    return resample(x, points, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)


# --- crop_resize ----------------------------------------------------------------------------------------------------


BOX_MODES = ("CORNERS_HEIGHT_FIRST", "CORNERS_WIDTH_FIRST", "CENTER_SIZE_HEIGHT_FIRST", "CENTER_SIZE_WIDTH_FIRST")


def _ends(boxes: np.ndarray, mode: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Top, bottom, left and right of boxes [n, 4]. A centre lies half a size from either end."""
    if mode not in BOX_MODES:
        raise ValueError(f'box_coordinate_mode "{mode}" is none of {", ".join(BOX_MODES)}')
    first, second, third, fourth = boxes.T
    if mode.endswith("WIDTH_FIRST"):
        first, second, third, fourth = second, first, fourth, third
    if mode.startswith("CORNERS"):
        return first, third, second, fourth
    return first - third / 2, first + third / 2, second - fourth / 2, second + fourth / 2


def _crops(
    x: np.ndarray,
    image: np.ndarray,
    boxes: np.ndarray,
    size: tuple[int, int],
    normalized: bool,
    spatial_scale: float,
    box_mode: str,
    sampling_mode: str,
    pad_value: float,
) -> np.ndarray:
    """Box n of boxes [n, 4] cut from image `image[n]` of x [b, c, h, w] -> [n, c, *size].

    The grid is that of resize_bilinear over the pixels from the first to the last of the box, both included, backwards
    when the box is. A point outside of the image gives `pad_value`, as in tf.image.crop_and_resize.

    Only UNALIGN_CORNERS is different: there coremltools' one test, a box that lies beyond the image, expects numbers
    that mirroring at the border pixels gives, and padding does not.
    """
    if image.size and (image.min() < 0 or image.max() >= len(x)):
        raise IndexError(f"crop_resize: box indices {image.tolist()} must lie in [0, {len(x)})")
    top, bottom, left, right = _ends(boxes.astype(np.float64) * float(spatial_scale), box_mode)
    weights, pixels, outside = [], [], []
    for first, last, limit, count in ((top, bottom, x.shape[2], size[0]), (left, right, x.shape[3], size[1])):
        if normalized:
            first, last = first * (limit - 1), last * (limit - 1)
        offsets = grid(sampling_mode, np.abs(last - first) + 1, count)
        points = first[:, None] + np.where(last < first, -1, 1)[:, None] * offsets
        if sampling_mode == "UNALIGN_CORNERS":
            points = _folded(points, limit, "reflection")
        outside.append((points < 0) | (points > limit - 1))
        points = np.clip(points, 0, limit - 1)
        low = np.floor(points).astype(np.intp)
        pixels.append((low, np.minimum(low + 1, limit - 1)))
        weights.append((points - low).astype(np.float32))
    rows, columns = [p[:, :, None] for p in pixels[0]], [p[:, None, :] for p in pixels[1]]
    down, across = weights[0][:, :, None, None], weights[1][:, None, :, None]
    source, which = x.transpose(0, 2, 3, 1), image[:, None, None]
    upper = source[which, rows[0], columns[0]] * (1 - across) + source[which, rows[0], columns[1]] * across
    lower = source[which, rows[1], columns[0]] * (1 - across) + source[which, rows[1], columns[1]] * across
    result = upper * (1 - down) + lower * down
    result[outside[0][:, :, None] | outside[1][:, None, :]] = pad_value
    return result.transpose(0, 3, 1, 2)


@op("crop_resize")
def crop_resize(
    x: np.ndarray,
    roi: np.ndarray,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> np.ndarray:
    """Boxes roi [n, 1, 4, 1, 1] of every image -> [n, b, c, h, w]; [n, 1, 5, 1, 1] of one image -> [n, 1, c, h, w].

    pad_value came with iOS 16.
    """
    boxes = roi.reshape(len(roi), -1)
    size = int(target_height), int(target_width)
    options = (bool(normalized_coordinates), spatial_scale, box_coordinate_mode, sampling_mode, float(pad_value))
    if boxes.shape[1] == 5:
        return _crops(x, boxes[:, 0].astype(np.intp), boxes[:, 1:], size, *options)[:, None]
    if boxes.shape[1] != 4:
        raise ValueError(f"crop_resize: roi {roi.shape} must be [n, 1, 4, 1, 1] or [n, 1, 5, 1, 1]")
    image = np.tile(np.arange(len(x)), len(boxes))
    return _crops(x, image, boxes.repeat(len(x), axis=0), size, *options).reshape(len(boxes), len(x), x.shape[1], *size)


@op("crop_resize", since="ios17")
def crop_resize_ios17(
    x: np.ndarray,
    boxes: np.ndarray,
    box_indices: Any = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> np.ndarray:
    """Boxes [n, 4] of the images `box_indices` (0, 1, ... when omitted) -> [n, c, h, w]."""
    image = np.arange(len(boxes)) if box_indices is None else np.asarray(box_indices).astype(np.intp)
    return _crops(
        x,
        image,
        np.asarray(boxes),
        (int(target_height), int(target_width)),
        bool(normalized_coordinates),
        spatial_scale,
        box_coordinate_mode,
        sampling_mode,
        float(pad_value),
    )
