"""A voice as a vector."""

from __future__ import annotations

from typing import Any

import numpy as np

from .sounds import SoundPipeline


class AudioXVector(SoundPipeline):
    """Vectors that are close for sounds of one speaker."""

    task = "audio-xvector"
    outputs = ("embeddings",)

    def __call__(self, inputs: Any, *, normalize: bool = True, batch_size: int | None = None) -> np.ndarray:
        """The vector of a sound, (width,) float32, or of each of a list of N, (N, width).

        Args:
            inputs: as for `audio-classification`.
            normalize: of length 1, so that their product is the cosine; False: as the model gives it.

        Raises:
            RequestError: something that is no sound.
        """
        sounds, single = self.listed_sounds(inputs)

        def read(outputs: dict[str, np.ndarray], _: Any) -> np.ndarray:
            vector = outputs["embeddings"]
            return vector / max(float(np.linalg.norm(vector)), 1e-12) if normalize else np.array(vector)

        results = self.run_sounds(sounds, read, batch_size)
        return results[0] if single else np.stack(results)

    def similarity(self, one: Any, other: Any) -> float:
        """Cosine of two sounds' vectors. Raises RequestError."""
        first, second = self([one, other])
        return float(first @ second)
