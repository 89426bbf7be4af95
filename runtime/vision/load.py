"""Pictures as files, bytes, arrays or Pillow images: what they become before the first step."""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DamagedError, RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

# A picture that unpacks to more than this is refused, whatever its file claims: 0.5 GB of pixels.
_MOST_PIXELS = 178_956_970


def pillow() -> ModuleType:
    """Pillow, which the runtime needs for pictures alone. Raises RequestError when it is not installed."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise RequestError("Pictures need Pillow: pip install 'palmtop[vision]'.") from error
    return PIL


def load_image(source: str | Path | bytes) -> Image:
    """A picture file as it is meant to be seen: turned as its EXIF orientation says, in RGB, without transparency.

    It is what `transformers` makes of a file (`image_utils.load_image`).

    Raises:
        RequestError: there is no such file.
        DamagedError: it is not a picture that Pillow reads, or it is damaged.
    """
    library = pillow()
    name = "the picture" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise RequestError(f"No such picture: {name}.")
    try:
        with library.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise RequestError(f"{name} has {image.width} x {image.height} pixels, which is too many.")
            return library.ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, library.Image.DecompressionBombError) as error:
        raise DamagedError(f"{name} cannot be read as a picture: {error}.") from error


def as_image(source: Any, transparent: str = "drop") -> Image:
    """A picture of any kind in RGB.

    Args:
        source: a file's path or bytes; a Pillow image; or an array of bytes, (height, width), (height, width, 3) or
            (height, width, 4).
        transparent: what becomes of transparency in images that are no files: `drop` forgets it, `white` lays the
            picture on white (`preprocess["image"]["transparent"]`).

    Raises:
        RequestError: something else, or an array of another shape or dtype.
        DamagedError: a damaged file.
    """
    if isinstance(source, (str, Path, bytes)):
        return load_image(source)
    library = pillow()
    if isinstance(source, np.ndarray):
        grey, colour = source.ndim == 2, source.ndim == 3 and source.shape[-1] in (3, 4)
        if source.dtype != np.uint8 or not (grey or colour) or 0 in source.shape:
            raise RequestError(
                f"A picture in an array is uint8, (height, width) or (height, width, 3 or 4); this one is "
                f"{source.dtype}, {list(source.shape)}."
            )
        source = library.Image.fromarray(source)
    if not isinstance(source, library.Image.Image):
        raise RequestError(f"Expected a picture (a file, an array or a Pillow image), got {type(source).__name__}.")
    if transparent == "white" and ("A" in source.getbands() or source.info.get("transparency") is not None):
        picture = source.convert("RGBA")
        ground = library.Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return library.Image.alpha_composite(ground, picture).convert("RGB")
    return source.convert("RGB")
