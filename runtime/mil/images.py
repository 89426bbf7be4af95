"""Images at the interface of a model.

Core ML hands a program an image as a float tensor (1, channels, height, width) of values 0..255 in the declared
channel order; scale and bias are operations of the program. PIL is not needed: any object with PIL's `mode` and
`convert` is taken for an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import DamagedError, RequestError


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


def tensor_to_image(name: str, tensor: np.ndarray, color_space: str) -> np.ndarray:
    """An image output as pixels: (height, width, 3) uint8 in RGB order, (height, width) uint8, or float16 for
    GRAYSCALE_FLOAT16.

    8-bit values are rounded (ties to even) and clipped to 0..255; how Core ML rounds is not documented.
    """
    channels = 1 if color_space.startswith("GRAYSCALE") else 3
    if tensor.ndim != 4 or tensor.shape[:2] != (1, channels):
        raise DamagedError(f"output {name}: a {color_space} image cannot be made of a tensor of {list(tensor.shape)}")
    if color_space == "GRAYSCALE_FLOAT16":
        return tensor[0, 0].astype(np.float16)
    pixels = np.nan_to_num(np.clip(np.rint(tensor[0].astype(np.float32)), 0, 255)).astype(np.uint8)
    if channels == 1:
        return pixels[0]
    return np.ascontiguousarray((pixels[::-1] if color_space == "BGR" else pixels).transpose(1, 2, 0))
