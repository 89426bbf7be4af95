"""Inputs in the sizes that an artifact takes, and outputs without what was put there for it."""

from __future__ import annotations

import numpy as np

from .manifest import Artifact, TokenizerSpec


def fit_feeds(
    feeds: dict[str, np.ndarray], artifact: Artifact, tokenizer: TokenizerSpec | None
) -> dict[str, np.ndarray] | None:
    """Feeds padded to the next size the artifact takes, on the tokenizer's side.

    None when they are too long for it, or are pictures or sounds of another size: padding is heard and seen.
    """
    pads = tokenizer.input_pad if tokenizer is not None else {}
    left = tokenizer is not None and tokenizer.padding_side == "left"
    by_row = all(spec.dims and spec.dims[0].constant == 1 for spec in artifact.inputs)
    fitted = {}
    for spec in artifact.inputs:
        array = feeds[spec.name]
        widths = []
        for axis, (size, dim) in enumerate(zip(array.shape, spec.dims, strict=True)):
            wanted = size if by_row and axis == 0 else dim.fit(size)  # the session runs a batch row by row
            if wanted is None:
                return None
            extra = wanted - size
            widths.append((extra, 0) if left and extra and axis else (0, extra))
        if any(width != (0, 0) for width in widths):
            if array.dtype.kind == "f" and any(width != (0, 0) for width in widths[1:]):
                return None
            array = np.pad(array, [(0, 0), *widths[1:]], constant_values=pads.get(spec.name, 0))
            array = np.pad(array, [widths[0], *[(0, 0)] * (array.ndim - 1)], mode="edge")  # whole rows repeat
        fitted[spec.name] = array
    return fitted


def with_mask(
    fitted: dict[str, np.ndarray], feeds: dict[str, np.ndarray], tokenizer: TokenizerSpec | None
) -> dict[str, np.ndarray]:
    """Fitted feeds with the attention mask of the text, also where the artifact takes none: its model never reads it.

    What is padding is left out of comparisons all the same.
    """
    mask = feeds.get("attention_mask")
    like = next((name for name in fitted if mask is not None and feeds[name].shape == mask.shape), None)
    if mask is None or like is None or "attention_mask" in fitted:
        return fitted
    rows, *extra = (now - then for now, then in zip(fitted[like].shape, mask.shape, strict=True))
    left = tokenizer is not None and tokenizer.padding_side == "left"
    mask = np.pad(mask, [(0, 0), *((more, 0) if left else (0, more) for more in extra)])
    mask = np.pad(mask, [(0, rows), *[(0, 0)] * (mask.ndim - 1)], mode="edge")
    return {**fitted, "attention_mask": mask}


def valid_rows(output: np.ndarray, artifact: Artifact, name: str, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The rows of an output without their padded positions; the whole output for models without an attention mask."""
    mask = feeds.get("attention_mask")
    if mask is None:
        return [output]
    spec = artifact.output(name)
    per_token = spec is not None and len(spec.dims) > 1 and spec.dims[1].symbol == "sequence" and mask.ndim == 2
    per_token = per_token and output.shape[:2] == mask.shape  # not frames of a sound, which are fewer than its samples
    return [row[mask[index] != 0] if per_token else row for index, row in enumerate(output)]
