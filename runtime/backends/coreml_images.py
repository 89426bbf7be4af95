"""Prepared pictures as the pixels that they were made of, for Core ML artifacts that prepare pictures themselves.

Sessions of every format are given the same arrays. What rescaling and normalising did to bytes can be undone exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import RequestError
from ..manifest import Artifact
from ..vision.load import pillow

# Values that no byte stands for are refused beyond this, in levels of 255.
_MOST = 0.05


def with_pictures(feeds: dict[str, np.ndarray], artifact: Artifact) -> dict[str, Any]:
    """The feeds, prepared pictures in them as Pillow images.

    Raises:
        RequestError: values that are not those of a prepared picture.
    """
    given: dict[str, Any] = dict(feeds)
    for name, image in artifact.image_inputs.items():
        offset, scale = (np.array(image[key], np.float64).reshape(-1, 1, 1) for key in ("offset", "scale"))
        values = feeds[name][0].astype(np.float64) / scale + offset
        pixels = np.clip(np.rint(values), 0, 255)
        if np.abs(pixels - values).max() > _MOST:
            raise RequestError(
                f"{artifact.path} takes pictures, and the values of {name} are not those of a picture that was "
                "prepared as the manifest says."
            )
        ordered = pixels[::-1] if image["colors"] == "BGR" else pixels
        given[name] = pillow().Image.fromarray(ordered.astype(np.uint8).transpose(1, 2, 0))
    return given
