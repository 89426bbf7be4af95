"""A picture of any shape as a list of patches with their places (Pix2Struct, arXiv:2210.03347)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .resample import antialiased


def patches(pixels: np.ndarray, step: dict[str, Any]) -> np.ndarray:
    """At most `most` patches of `height` x `width`: (most, 2 + height * width * channels) float32, zeros at the end.

    The picture is scaled, in proportion, to as many patches as there may be. A patch starts with its row and column,
    counted from 1, then its pixels row by row with their channels together.
    """
    channels, height, width = pixels.shape
    tall, wide, most = step["height"], step["width"], step["most"]
    scale = (most * (tall / height) * (wide / width)) ** 0.5
    rows = max(min(int(scale * height / tall), most), 1)
    columns = max(min(int(scale * width / wide), most), 1)
    resized = antialiased(pixels.astype(np.float32), rows * tall, columns * wide)
    cut = resized.reshape(channels, rows, tall, columns, wide).transpose(1, 3, 2, 4, 0).reshape(rows * columns, -1)
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2) + 1
    result = np.zeros((most, 2 + cut.shape[1]), np.float32)
    result[: len(cut)] = np.concatenate([places.astype(np.float32), cut], axis=1)
    return result
