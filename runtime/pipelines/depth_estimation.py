"""How far each pixel of a picture is."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..results import Depth
from ..vision.resample import bicubic
from .images import ImagePipeline, pictures


class DepthEstimation(ImagePipeline):
    """Depth maps in the picture's size, in the unit of the model (many give inverse depth)."""

    task = "depth-estimation"
    outputs = ("predicted_depth",)

    def __call__(self, inputs: Any, *, batch_size: int | None = None) -> Any:
        """Estimate depths in a picture, or in each of a list.

        Returns:
            Depths: `predicted_depth` (height, width) float32, and `depth`, the same as a grey picture of bytes from the
            least depth (0) to the greatest (255); for a list of inputs a list of them.

        Raises:
            RequestError: something that is no picture.
            DamagedError: a damaged file.
        """
        items, single = pictures(inputs)

        def read(outputs: dict[str, np.ndarray], picture: Any) -> Depth:
            values = bicubic(outputs["predicted_depth"].reshape(outputs["predicted_depth"].shape[-2:]), *picture.size)
            span = values.max() - values.min()
            grey = (values - values.min()) / span if span > 0 else np.zeros_like(values)
            return Depth(values, (grey * 255).astype(np.uint8))

        results = self.run_pictures(items, read, batch_size)
        return results[0] if single else results
