"""The states of a picture's patches."""

from __future__ import annotations

from typing import Any

import numpy as np

from .images import ImagePipeline, pictures


class ImageFeatureExtraction(ImagePipeline):
    """Hidden states as arrays: (patches, width) of transformers, (channels, rows, columns) of convolutions."""

    task = "feature-extraction"
    outputs = ("last_hidden_state",)

    def __call__(self, inputs: Any, *, batch_size: int | None = None) -> Any:
        """The states of a picture, or of each of a list: arrays of float32, for a list of inputs a list of them.

        Raises:
            RequestError: something that is no picture.
            DamagedError: a damaged file.
        """
        items, single = pictures(inputs)
        results: list[np.ndarray] = self.run_pictures(
            items, lambda outputs, _: outputs["last_hidden_state"], batch_size
        )
        return results[0] if single else results
