"""The steps that make a model's input of a picture: each a function of pixels and the step's parameters.

Pixels are (channels, height, width), uint8 until a step makes them float32. The arithmetic, down to which products are
taken in double precision, is that of `transformers.image_transforms`, so that results are equal bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import DamagedError, RequestError
from .load import pillow
from .patches import patches
from .sizes import RULES

Step = dict[str, Any]

# Pillow's filters by name; each is widened when a picture shrinks (antialiased).
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def resize(pixels: np.ndarray, step: Step) -> np.ndarray:
    """To the size that `rule` gives (see `sizes.py`), with the filter `resample`."""
    height, width = RULES[step["rule"]]((pixels.shape[1], pixels.shape[2]), step)
    if height < 1 or width < 1:
        raise RequestError(f"A picture of {pixels.shape[2]} x {pixels.shape[1]} pixels is too small for this model.")
    if (height, width) == pixels.shape[1:]:
        return pixels  # Pillow copies
    image = pillow().Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    resized = image.resize((width, height), resample=FILTERS[step["resample"]])
    return np.array(resized).transpose(2, 0, 1)


def center_crop(pixels: np.ndarray, step: Step) -> np.ndarray:
    """The middle `height` x `width`; or with `height_share` and `width_share` these shares of the shorter edge.

    Where the picture is smaller, zeros are put around it.
    """
    channels, height, width = pixels.shape
    if "height_share" in step:
        shorter = min(height, width)
        wanted_height, wanted_width = int(step["height_share"] * shorter), int(step["width_share"] * shorter)
    else:
        wanted_height, wanted_width = step["height"], step["width"]
    if height < wanted_height or width < wanted_width:
        taller, wider = max(height, wanted_height), max(width, wanted_width)
        ground = np.zeros((channels, taller, wider), pixels.dtype)
        above, left = math.ceil((taller - height) / 2), math.ceil((wider - width) / 2)
        ground[:, above : above + height, left : left + width] = pixels
        # The place of the crop is counted from the picture, not from its ground.
        top = (height - wanted_height) // 2 + above
        start = (width - wanted_width) // 2 + left
        pixels = ground
    else:
        top, start = (height - wanted_height) // 2, (width - wanted_width) // 2
    return pixels[:, max(0, top) : top + wanted_height, max(0, start) : start + wanted_width]


def turn(pixels: np.ndarray, step: Step) -> np.ndarray:
    """A quarter turn clockwise when the picture is upright and `height` x `width` lies, or the other way round."""
    upright, lying = step["height"] > step["width"], step["width"] > step["height"]
    if (upright and pixels.shape[2] > pixels.shape[1]) or (lying and pixels.shape[2] < pixels.shape[1]):
        return np.rot90(pixels, 3, axes=(1, 2))
    return pixels


def pad(pixels: np.ndarray, step: Step) -> np.ndarray:
    """Zeros around the picture up to `height` x `width`, or up to a multiple of `multiple`; `position` says where the
    picture stands: `start` (top left) or `center`."""
    height, width = _padded_size(pixels, step)
    below, right = height - pixels.shape[1], width - pixels.shape[2]
    if below < 0 or right < 0:
        raise RequestError(
            f"A picture of {pixels.shape[2]} x {pixels.shape[1]} pixels does not fit into {width} x {height}."
        )
    above, left = (below // 2, right // 2) if step["position"] == "center" else (0, 0)
    return np.pad(pixels, ((0, 0), (above, below - above), (left, right - left)))


def _padded_size(pixels: np.ndarray, step: Step) -> tuple[int, int]:
    if "multiple" in step:
        unit = step["multiple"]
        return math.ceil(pixels.shape[1] / unit) * unit, math.ceil(pixels.shape[2] / unit) * unit
    return step["height"], step["width"]


def rescale(pixels: np.ndarray, step: Step) -> np.ndarray:
    """Times `factor` (in double precision), then plus `offset`."""
    scaled = (pixels.astype(np.float64) * step["factor"]).astype(np.float32)
    return scaled + np.float32(step["offset"]) if step.get("offset") else scaled


def normalize(pixels: np.ndarray, step: Step) -> np.ndarray:
    """Minus `mean`, divided by `std`, one value a channel, in single precision."""
    mean, std = (np.array(step[name], np.float32)[:, None, None] for name in ("mean", "std"))
    return (pixels.astype(np.float32) - mean) / std


def standardize(pixels: np.ndarray, step: Step) -> np.ndarray:
    """Minus the picture's own mean, divided by its own deviation (at least one over the root of its size)."""
    values = pixels.astype(np.float32)
    return (values - np.mean(values)) / max(np.std(values), 1.0 / math.sqrt(np.prod(values.shape)))


def flip_channels(pixels: np.ndarray, step: Step) -> np.ndarray:
    """Red, green, blue to blue, green, red."""
    return pixels[::-1]


STEPS: dict[str, Callable[[np.ndarray, Step], np.ndarray]] = {
    step.__name__: step
    for step in (resize, center_crop, turn, pad, rescale, normalize, standardize, flip_channels, patches)
}


def run_step(pixels: np.ndarray, step: Step) -> np.ndarray:
    """Raises DamagedError for a step that this reader does not know."""
    if step.get("step") not in STEPS:
        raise DamagedError(f"The bundle prepares pictures with a step '{step.get('step')}' that is not known here.")
    try:
        return STEPS[step["step"]](pixels, step)
    except KeyError as error:
        raise DamagedError(f"The step '{step['step']}' for pictures lacks {error} or has an unknown value.") from error
