"""Texts of the user's that calibration does not see: what a quantized model is judged on."""

from __future__ import annotations

import numpy as np

from ..runtime.manifest import TokenizerSpec
from ..runtime.verify import Case
from .quantization import Feeds
from .reference import Reference

# Of so many texts one is held back; of few, these, and of fewer than three times that none.
_EVERY, _FEWEST = 10, 4
# More numbers than these in all (tokens, of texts) say nothing new, and every trial of a search is executed on them.
_MOST = 8192
# How many short and long texts together make a padded batch.
_TOGETHER = 5


def hold_back(feeds: list[Feeds]) -> tuple[list[Feeds], list[Feeds]]:
    """Of calibration inputs those to calibrate with, and those to judge on: every tenth, from all over the file."""
    every = min(_EVERY, len(feeds) // _FEWEST)
    if every < 3:
        return feeds, []
    chosen = range(every - 1, len(feeds), every)
    kept = [feed for place, feed in enumerate(feeds) if place not in chosen]
    return kept, _enough([feeds[place] for place in chosen])


def _enough(feeds: list[Feeds]) -> list[Feeds]:
    while len(feeds) >= 2 * _FEWEST and sum(max(array.size for array in feed.values()) for feed in feeds) > _MOST:
        feeds = feeds[::2]
    return feeds


def held_out_cases(reference: Reference, held: list[Feeds], tokenizer: TokenizerSpec | None) -> list[Case]:
    """Cases of inputs that were held back: half of them alone, half in padded batches where the model takes a mask."""
    rows = [feed for feed in held if tokenizer is not None and "attention_mask" in feed and _is_row(feed)]
    batched = rows[: len(rows) // 2] if len(rows) == len(held) else []
    cases = [reference.case(f"held out {place + 1}", feed) for place, feed in enumerate(held[len(batched) :])]
    for start in range(0, len(batched), _TOGETHER):
        assert tokenizer is not None
        together = _padded(batched[start : start + _TOGETHER], tokenizer)
        cases.append(reference.case(f"held out, batch {start // _TOGETHER + 1}", together))
    return cases


def _is_row(feed: Feeds) -> bool:
    return {array.shape for array in feed.values()} == {(1, feed["attention_mask"].shape[-1])}


def _padded(feeds: list[Feeds], tokenizer: TokenizerSpec) -> Feeds:
    width = max(feed["attention_mask"].shape[1] for feed in feeds)

    def pad(array: np.ndarray, value: int) -> np.ndarray:
        missing = width - array.shape[1]
        ends = (missing, 0) if tokenizer.padding_side == "left" else (0, missing)
        return np.pad(array, [(0, 0), ends], constant_values=value)

    return {
        name: np.concatenate([pad(feed[name], tokenizer.input_pad.get(name, 0)) for feed in feeds]) for name in feeds[0]
    }
