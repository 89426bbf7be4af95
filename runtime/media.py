"""Files that are neither text nor arrays as a model's inputs, as the manifest's `preprocess` says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def prepare(preprocess: Mapping[str, Any], kind: str, path: Path) -> dict[str, np.ndarray]:
    """The inputs, with a leading axis of 1, that a file becomes. `kind`: `image` or `audio`.

    Raises:
        RequestError: no such file, or nothing here reads it.
        DamagedError: a damaged file, or steps that this reader does not know.
    """
    return _PREPARE[kind](preprocess[kind], path)


def _image(data: dict[str, Any], path: Path) -> dict[str, np.ndarray]:
    from .vision import ImageProcessor

    return ImageProcessor(data)([path])


def _audio(data: dict[str, Any], path: Path) -> dict[str, np.ndarray]:
    from .audio import AudioProcessor

    processor = AudioProcessor(data)
    return processor.batch([processor.features(processor.sound(path))])


_PREPARE: Mapping[str, Callable[[dict[str, Any], Path], dict[str, np.ndarray]]] = {"image": _image, "audio": _audio}
