"""Things in pictures, each with its box."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import RequestError
from ..results import Box, Detection
from .images import ImagePipeline, pictures
from .maths import ACTIVATIONS

THRESHOLD = 0.5


class ObjectDetection(ImagePipeline):
    """What is where, for models that answer with a set of boxes (DETR, arXiv:2005.12872, and its kin)."""

    task = "object-detection"
    outputs = ("logits", "pred_boxes")

    def __call__(self, inputs: Any, *, threshold: float = THRESHOLD, batch_size: int | None = None) -> Any:
        """Find things in a picture, or in each of a list.

        Args:
            threshold: the least score of what is returned, itself excluded.

        Returns:
            Detections with boxes in pixels of the picture, as the model ranks them; for a list of inputs a list of such
            lists.

        Raises:
            RequestError: something that is no picture, or a threshold that is no number.
            DamagedError: a damaged file.
        """
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
            raise RequestError(f"threshold must be a number, not {threshold!r}.")
        items, single = pictures(inputs)
        labels = self.id2label

        def read(outputs: dict[str, np.ndarray], picture: Any) -> list[Detection]:
            scores, classes, boxes = detections(
                outputs["logits"], outputs["pred_boxes"], picture.size, self.manifest.postprocess
            )
            return [
                Detection(float(score), labels[int(number)], Box(*(int(edge) for edge in box)))
                for score, number, box in zip(scores, classes, boxes, strict=True)
                if score > threshold
            ]

        results = self.run_pictures(items, read, batch_size)
        return results[0] if single else results


def detections(
    logits: np.ndarray, boxes: np.ndarray, size: tuple[int, int], settings: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, classes and corners of what a model's queries found.

    Args:
        logits: (queries, classes). boxes: (queries, 4): centre, width and height, relative to the picture.
        size: height and width of the picture.
        settings: the manifest's `postprocess`: `activation`; `background`, whether the last class means that nothing is
            there; `ranking`: `queries` gives each query's best class in their order, `classes` the best pairs of query
            and class, best first, as many as `top` (null: as there are queries).

    Returns:
        (n,), (n,), and (n, 4): left, top, right, bottom in pixels.
    """
    scores = ACTIVATIONS[settings["activation"]](logits)
    if settings.get("background"):
        scores = scores[:, :-1]
    if settings.get("ranking") == "classes":
        count = min(settings.get("top") or len(scores), scores.size)
        order = np.argsort(-scores.reshape(-1), kind="stable")[:count]
        queries, classes = np.divmod(order, scores.shape[1])
    else:
        queries, classes = np.arange(len(scores)), scores.argmax(axis=1)
    x, y, width, height = boxes[queries].T
    corners = np.stack([x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height], axis=1)
    return scores[queries, classes], classes, corners * np.array([size[1], size[0], size[1], size[0]], np.float32)
