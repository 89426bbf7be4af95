"""Classes of a sound at each moment: who speaks when."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import RequestError
from ..results import Segment
from .base import choice
from .maths import ACTIVATIONS
from .sounds import SoundPipeline


class AudioFrameClassification(SoundPipeline):
    """Stretches of a sound by class. Classes may overlap, as voices do."""

    task = "audio-frame-classification"
    outputs = ("logits",)
    per_frame = ("logits",)

    def __call__(
        self,
        inputs: Any,
        *,
        threshold: float = 0.5,
        function_to_apply: str | None = None,
        aggregate: bool = True,
        batch_size: int | None = None,
    ) -> Any:
        """Find when a sound, or each of a list, is of which class.

        Args:
            inputs: as for `audio-classification`.
            threshold: a frame is of a class whose probability is above this.
            function_to_apply: `sigmoid` (each class for itself), `softmax` or `none`; None does what the bundle says.
            aggregate: give stretches; False gives the probabilities themselves.

        Returns:
            Segments in order of their start; without `aggregate` float32 (frames, classes). For a list of inputs a
            list of that.

        Raises:
            RequestError: something that is no sound, or an option that does not exist.
        """
        sounds, single = self.listed_sounds(inputs)
        if not isinstance(threshold, (int, float)):
            raise RequestError(f"threshold must be a number, not {threshold!r}.")
        name = function_to_apply or self.manifest.postprocess.get("activation", "sigmoid")
        activation = ACTIVATIONS[choice("function_to_apply", name, ACTIVATIONS)]

        def read(outputs: dict[str, Any], _: Any) -> Any:
            scores = activation(outputs["logits"]).astype(np.float32)
            return self._segments(scores, threshold) if aggregate else scores

        results = self.run_sounds(sounds, read, batch_size)
        return results[0] if single else results

    def _segments(self, scores: np.ndarray, threshold: float) -> list[Segment]:
        step, labels = self.seconds_per_frame, self.id2label
        found = []
        for index in range(scores.shape[1]):
            active = np.concatenate([[False], scores[:, index] > threshold, [False]]).astype(np.int8)
            edges = np.flatnonzero(np.diff(active)).reshape(-1, 2)
            found += [
                Segment(labels[index], float(scores[start:end, index].mean()), float(start * step), float(end * step))
                for start, end in edges
            ]
        return sorted(found, key=lambda segment: (segment.start, segment.label))
