"""Resizing and cropping: upsample_*, resize_*, resize, crop. (crop_resize, affine and resample: image_sampling.py.)

Grid points are computed in fp64, since fp32 puts some that should fall on a pixel just beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..registry import op

SAMPLING_MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")


def grid(mode: str, size: np.ndarray | float, count: int) -> np.ndarray:
    """Where `count` samples lie in [0, size - 1]: the formulas in the documentation of resize_bilinear.

    `size` may be fractional, and an array (then samples are along a new last axis), for the boxes of crop_resize.
    With one sample, DEFAULT and STRICT_ALIGN_CORNERS, whose formulas divide by zero, take the first pixel.
    """
    n = np.asarray(size, np.float64)[..., None]
    i = np.arange(count)
    if mode == "STRICT_ALIGN_CORNERS" or (mode == "ALIGN_CORNERS" and count > 1):
        points = (n - 1) * (i / max(1, count - 1))
    elif mode == "ALIGN_CORNERS":
        points = (n - 1) / 2 + 0 * i
    elif mode == "DEFAULT":
        points = i * n / count
    elif mode == "OFFSET_CORNERS":
        points = (i + 0.5) * np.maximum(1, n - 1) / count
    elif mode == "UNALIGN_CORNERS":
        points = (i + 0.5) * n / count - 0.5
    else:
        raise ValueError(f'sampling mode "{mode}" is none of {", ".join(SAMPLING_MODES)}')
    return np.minimum(n - 1, np.maximum(0, points))


def _linear(x: np.ndarray, axis: int, points: np.ndarray) -> np.ndarray:
    """Interpolate between the two neighbours of each point along `axis`."""
    if len(points) == x.shape[axis] and np.array_equal(points, np.arange(len(points))):
        return x
    low = np.floor(points).astype(np.intp)
    share = (points - low).astype(np.float32).reshape(-1, *[1] * (x.ndim - 1 - axis))
    first = np.take(x, low, axis=axis)
    step = np.take(x, np.minimum(low + 1, x.shape[axis] - 1), axis=axis)
    step -= first
    step *= share
    step += first
    return step


def _bilinear(x: np.ndarray, sizes: tuple[int, int], mode: str) -> np.ndarray:
    """The last two dimensions of `x` resized to `sizes`; the smaller of the two intermediate results is made."""
    source = np.asarray(x, np.float32)
    axes = [x.ndim - 2, x.ndim - 1]
    order = sorted(axes, key=lambda a: sizes[a - x.ndim] / max(1, x.shape[a]))
    for axis in order:
        source = _linear(source, axis, grid(mode, x.shape[axis], sizes[axis - x.ndim]))
    return source.copy() if source is x else source


def _pick(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The given rows and columns of the last two dimensions."""
    return np.take(np.take(x, rows, axis=-2), columns, axis=-1)


def _scaled(size: int, scale: Any) -> int:
    """floor(size * scale), multiplied in fp32 like coremltools' shape inference."""
    return int(np.floor(np.float32(scale) * np.float32(size)))


@op("upsample_nearest_neighbor", exact=True)
def upsample_nearest_neighbor(x: np.ndarray, scale_factor_height: Any = 1, scale_factor_width: Any = 1) -> np.ndarray:
    """Output pixel i shows input pixel floor(i * size_in / size_out).

    That is TensorFlow's and PyTorch's rule, from both of which coremltools converts to this operation. The scale is
    that of the sizes, not the given factor: they differ when size_in * factor is not whole.
    """
    places = []
    for size, scale in zip(x.shape[-2:], (scale_factor_height, scale_factor_width), strict=True):
        count = _scaled(size, scale)
        places.append(np.arange(count) * size // max(1, count))
    return _pick(x, *places)


def _centred(size: int, count: int) -> np.ndarray:
    """floor((i + 0.5) * size / count) in whole numbers: the input pixel under the centre of output pixel i."""
    return (2 * np.arange(count) + 1) * size // (2 * max(1, count))


@op("resize_nearest_neighbor", exact=True)
def resize_nearest_neighbor(x: np.ndarray, target_size_height: int, target_size_width: int) -> np.ndarray:
    """Output pixel i shows the input pixel under its centre.

    Not documented; coremltools' TensorFlow converter uses this operation for half_pixel_centers and
    upsample_nearest_neighbor otherwise.
    """
    height, width = int(target_size_height), int(target_size_width)
    return _pick(x, _centred(x.shape[-2], height), _centred(x.shape[-1], width))


@op("upsample_bilinear")
def upsample_bilinear(
    x: np.ndarray,
    scale_factor_height: Any = 1,
    scale_factor_width: Any = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> np.ndarray:
    """Bilinear to floor(size * factor); the scale is recomputed from the sizes, as documented.

    half_pixel_centers (iOS 16) is `not align_corners` when omitted; both at once have no meaning.
    """
    half = not align_corners if half_pixel_centers is None else bool(half_pixel_centers)
    if align_corners and half:
        raise ValueError("upsample_bilinear: align_corners and half_pixel_centers cannot both be true")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    sizes = _scaled(x.shape[-2], scale_factor_height), _scaled(x.shape[-1], scale_factor_width)
    return _bilinear(x, sizes, mode)


@op("resize_bilinear")
def resize_bilinear(
    x: np.ndarray, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> np.ndarray:
    """Bilinear to the given height and width."""
    return _bilinear(x, (int(target_size_height), int(target_size_width)), sampling_mode)


@op("resize", since="ios17")
def resize(
    x: np.ndarray,
    shape: Any,
    resized_dims: Any,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> np.ndarray:
    """The last `resized_dims` dimensions of `x` to the last entries of `shape`, where 0 keeps the size.

    Nearest neighbour: with DEFAULT and UNALIGN_CORNERS the pixel under the centre, since this operation is documented
    as a superset of resize_nearest_neighbor (coremltools' test agrees); with the others the pixel nearest to the grid
    point, ties towards the end. Integers are interpolated in fp32 and truncated, like a cast. Apple documents neither.
    """
    count = int(np.asarray(resized_dims).reshape(()))
    listed = [int(n) for n in np.asarray(shape).reshape(-1)]
    if count > len(listed) or len(listed) > x.ndim:
        raise ValueError(f"resize: {count} dimensions of shape {listed} do not fit x {x.shape}")
    result = x
    for axis, size in zip(range(x.ndim - count, x.ndim), listed[len(listed) - count :], strict=True):
        size = size or x.shape[axis]
        points = grid(sampling_mode, x.shape[axis], size)
        if interpolation_mode == "LINEAR":
            result = _linear(np.asarray(result, np.float32), axis, points)
        elif interpolation_mode != "NEAREST_NEIGHBOR":
            raise ValueError(f'interpolation mode "{interpolation_mode}" is neither LINEAR nor NEAREST_NEIGHBOR')
        elif sampling_mode in ("DEFAULT", "UNALIGN_CORNERS"):
            result = np.take(result, _centred(x.shape[axis], size), axis=axis)
        else:
            result = np.take(result, np.floor(points + 0.5).astype(np.intp), axis=axis)
    return result.astype(x.dtype, copy=result is x)


@op("crop", exact=True)
def crop(x: np.ndarray, crop_height: Any, crop_width: Any) -> np.ndarray:
    """Without the given rows (top, bottom) and columns (left, right)."""
    top, bottom = (int(n) for n in np.asarray(crop_height).reshape(-1))
    left, right = (int(n) for n in np.asarray(crop_width).reshape(-1))
    height, width = x.shape[-2:]
    if min(top, bottom, left, right) < 0 or top + bottom > height or left + right > width:
        raise ValueError(f"crop of {top, bottom} rows and {left, right} columns does not fit {height} x {width}")
    return x[..., top : height - bottom, left : width - right]
