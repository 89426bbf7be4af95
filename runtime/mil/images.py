"""Images at the interface of a model.

Core ML hands a program an image as a float tensor (1, channels, height, width) of values 0..255 in the declared
channel order; scale and bias are operations of the program. PIL is not needed: any object with PIL's `mode` and
`convert` is taken for an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import RequestError


def image_to_tensor(name: str, image: Any, color_space: str) -> np.ndarray:
    """(1, channels, height, width) float32 from a PIL image, converted to the declared colour space."""
    gray = color_space.startswith("GRAYSCALE")
    mode = "F" if color_space == "GRAYSCALE_FLOAT16" else "L" if gray else "RGB"
    try:
        pixels = np.asarray(image if image.mode == mode else image.convert(mode), np.float32)
    except (ValueError, TypeError, AttributeError) as error:
        raise RequestError(f"input {name}: cannot convert the image to {mode} ({error})") from error
    if gray:
        return pixels[None, None]
    if color_space == "BGR":
        pixels = pixels[..., ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
