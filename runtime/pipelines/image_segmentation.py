"""Which class each pixel of a picture has."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..results import Region
from ..vision.resample import bilinear
from .images import ImagePipeline, pictures


class ImageSegmentation(ImagePipeline):
    """Semantic segmentation: one mask a class that is in the picture."""

    task = "image-segmentation"
    outputs = ("logits",)

    def __call__(self, inputs: Any, *, batch_size: int | None = None) -> Any:
        """Segment a picture, or each of a list.

        Returns:
            A region for each class that some pixel has, by number of the class: `mask` is (height, width) uint8 in the
            picture's size, 255 where the pixel has the class. For a list of inputs a list of such lists.

        Raises:
            RequestError: something that is no picture.
            DamagedError: a damaged file.
        """
        items, single = pictures(inputs)
        labels = self.id2label

        def read(outputs: dict[str, np.ndarray], picture: Any) -> list[Region]:
            classes = bilinear(outputs["logits"], *picture.size).argmax(axis=0)
            return [
                Region(None, labels[int(number)], ((classes == number) * 255).astype(np.uint8))
                for number in np.unique(classes)
            ]

        results = self.run_pictures(items, read, batch_size)
        return results[0] if single else results
