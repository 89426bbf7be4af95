"""A checkpoint's image processor, run from the data that stands for it in a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DamagedError, RequestError
from .load import as_image
from .steps import run_step


@dataclass(frozen=True)
class Picture:
    """A picture as a model takes it.

    `values` is what the steps made of it; `size` was its height and width; `valid` are the height and width of what is
    not padding, where that lies at the top left.
    """

    values: np.ndarray
    size: tuple[int, int]
    valid: tuple[int, int]


class ImageProcessor:
    """Made of `preprocess["image"]`:

    `inputs` are the model's inputs that it makes (`pixel_values`, and `pixel_mask` with 1 where there is picture; or
    `flattened_patches` and `attention_mask`); `steps` the steps in order; `transparent` what becomes of transparency
    (see `as_image`).
    """

    def __init__(self, data: dict[str, Any]):
        try:
            self.inputs: list[str] = list(data["inputs"])
            self.steps: list[dict[str, Any]] = list(data["steps"])
        except (KeyError, TypeError) as error:
            raise DamagedError("The manifest's preprocess.image states no inputs or no steps.") from error
        self.transparent: str = data.get("transparent", "drop")

    def prepare(self, source: Any) -> Picture:
        """Run the steps on one picture: a file, its bytes, a Pillow image or an array.

        Raises:
            RequestError: no picture, or one that is too small.
            DamagedError: a damaged file, or a step that this reader does not know.
        """
        image = as_image(source, self.transparent)
        pixels = np.asarray(image).transpose(2, 0, 1)
        valid: tuple[int, int] | None = None
        for step in self.steps:
            if step.get("step") == "pad" and step.get("position") == "start":
                valid = (pixels.shape[1], pixels.shape[2])
            pixels = run_step(pixels, step)
        whole = (pixels.shape[-2], pixels.shape[-1])
        return Picture(np.ascontiguousarray(pixels), (image.height, image.width), valid or whole)

    def batch(self, pictures: Sequence[Picture]) -> dict[str, np.ndarray]:
        """The model's inputs for prepared pictures, the leading axis one entry a picture.

        Pictures of several sizes are put at the top left of zeros as large as the largest, where a mask says so.

        Raises:
            RequestError: several sizes, and no mask for the model.
        """
        if self.inputs[0] == "flattened_patches":
            values = np.stack([picture.values for picture in pictures])
            return self._named(values, (values.sum(axis=-1) != 0).astype(np.float32))
        sizes = {picture.values.shape for picture in pictures}
        if len(sizes) > 1 and len(self.inputs) == 1:
            raise RequestError("Pictures that become different sizes cannot run together: this model takes no mask.")
        height, width = (max(size[axis] for size in sizes) for axis in (1, 2))
        values = np.zeros((len(pictures), pictures[0].values.shape[0], height, width), pictures[0].values.dtype)
        mask = np.zeros((len(pictures), height, width), np.int64)
        for row, picture in enumerate(pictures):
            values[row, :, : picture.values.shape[1], : picture.values.shape[2]] = picture.values
            mask[row, : picture.valid[0], : picture.valid[1]] = 1
        return self._named(values, mask)

    def __call__(self, sources: Any) -> dict[str, np.ndarray]:
        """The model's inputs for a picture, or for a list of them."""
        several = sources if isinstance(sources, (list, tuple)) else [sources]
        return self.batch([self.prepare(source) for source in several])

    def _named(self, *arrays: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self.inputs, arrays, strict=False))
