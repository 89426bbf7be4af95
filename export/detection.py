"""How a detector's outputs are read, as data: proposed, and kept when it does what the checkpoint's processor does."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ..runtime.errors import UnsupportedError
from ..runtime.pipelines.object_detection import detections

_SIZE = (480, 640)
_TOPS = (None, 100, 300)


def detection_settings(processor: Any, config: Any, name: str) -> dict[str, Any]:
    """The manifest's `postprocess` of an object detector, without its labels (see `detections`).

    Raises:
        UnsupportedError: the processor reads the outputs in a way that cannot be said in data.
    """
    read = getattr(processor, "post_process_object_detection", None)
    if read is None:
        # After a focal loss each class of a query is a yes or no; else one more class says that nothing is there.
        return next(_readings()) if not getattr(config, "use_focal_loss", False) else _focal(None)
    random = np.random.default_rng(0)
    outputs = []
    for queries in (40, 350):  # fewer and more than any `top`
        logits = random.normal(0, 2, (queries, len(config.id2label) + 1)).astype(np.float32)
        outputs.append((logits, random.uniform(0.05, 0.95, (queries, 4)).astype(np.float32)))
    for settings in _readings():
        if all(_same(read, logits, boxes, settings) for logits, boxes in outputs):
            return settings
    raise UnsupportedError(
        f"How the image processor of {name} ({type(processor).__name__}) reads boxes cannot be said in data. Remedy: "
        "export it as a module, and read its outputs in the app."
    )


def _readings() -> Iterator[dict[str, Any]]:
    yield {"activation": "softmax", "background": True, "ranking": "queries", "top": None}
    for top in _TOPS:
        yield _focal(top)
    yield {"activation": "sigmoid", "background": False, "ranking": "queries", "top": None}


def _focal(top: int | None) -> dict[str, Any]:
    return {"activation": "sigmoid", "background": False, "ranking": "classes", "top": top}


def _same(read: Any, logits: np.ndarray, boxes: np.ndarray, settings: dict[str, Any]) -> bool:
    given = SimpleNamespace(logits=torch.from_numpy(logits)[None], pred_boxes=torch.from_numpy(boxes)[None])
    wanted = read(given, threshold=0.0, target_sizes=[_SIZE])[0]
    scores, classes, corners = detections(logits, boxes, _SIZE, settings)
    return (
        len(scores) == len(wanted["scores"])
        and np.allclose(scores, wanted["scores"].numpy(), atol=1e-5)
        and np.array_equal(classes, wanted["labels"].numpy())
        and np.allclose(corners, wanted["boxes"].numpy(), atol=1e-2)
    )
