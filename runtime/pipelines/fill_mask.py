"""Tokens for the masks of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import RequestError
from ..results import Fill
from ..tokenizer import Window
from .base import TextPipeline, listed, whole
from .maths import best, softmax


class FillMask(TextPipeline):
    """The most probable tokens for each mask. Several masks are filled independently of each other."""

    task = "fill-mask"
    outputs = ("logits",)
    per_token = ("logits",)
    batch_size = 1  # the logits of one text are already tokens x vocabulary

    def __call__(
        self,
        inputs: Any,
        *,
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
        batch_size: int | None = None,
    ) -> Any:
        """Fill the mask (`pipeline.mask_token`) of a text, or of each of a list.

        Args:
            top_k: how many tokens for each mask.
            targets: consider only these tokens. One that is not in the vocabulary stands for its first piece.

        Returns:
            `Fill`s, best first; for a text with several masks a list of such lists, one a mask; for a list of inputs a
            list of all that.

        Raises:
            RequestError: a text has no mask, or none that survives truncation.
        """
        items, single = listed(inputs, (str,), "a text")
        top_k = whole("top_k", top_k) or 5
        mask = self._mask_id
        candidates = None if targets is None else self._target_ids(targets)
        windows = self.tokenizer.encode(items, max_length=self.max_length)
        for window in windows:
            if mask not in window.encoding.ids:
                cut = " It was cut off: the text is longer than the model takes." if window.encoding.overflowing else ""
                raise RequestError(f"Input {window.sample} has no {self.mask_token} to fill.{cut}")

        def read(outputs: dict[str, np.ndarray], window: Window) -> list[Any]:
            ids = np.array(window.encoding.ids)
            positions = np.flatnonzero(ids == mask)
            found = []
            for position in positions:
                scores = softmax(outputs["logits"][position])
                scores = scores if candidates is None else scores[candidates]
                tokens = [(i if candidates is None else int(candidates[i]), scores[i]) for i in best(scores, top_k)]
                found.append([self._fill(ids, position, t, float(s), len(positions) == 1) for t, s in tokens])
            return found[0] if len(found) == 1 else found

        results = self.run_windows(windows, read, batch_size)
        return results[0] if single else results

    @property
    def mask_token(self) -> str:
        """What a mask is written as (`[MASK]`, `<mask>`)."""
        return self.tokenizer.token(self._mask_id)

    @property
    def _mask_id(self) -> int:
        mask = self.tokenizer.special_id("mask")
        if mask is None:
            raise RequestError("This tokenizer has no mask token, so there is nothing to fill.")
        return mask

    def _fill(self, ids: np.ndarray, position: int, token: int, score: float, only_mask: bool) -> Fill:
        filled = ids.copy()
        filled[position] = token
        kept = filled[filled != self.tokenizer.special_id("pad")].tolist()
        # With several masks the other ones must stay visible.
        sequence = self.tokenizer.decode(kept, skip_special_tokens=only_mask)
        return Fill(score, token, self.tokenizer.decode([token]), sequence)

    def _target_ids(self, targets: str | Sequence[str]) -> np.ndarray:
        items, _ = listed(targets, (str,), "a target")
        found: set[int] = set()
        for target in items:
            known = self.tokenizer.token_id(target)
            if known is None:
                (window,) = self.tokenizer.encode([target], truncation=None, add_special_tokens=False)
                found.update(window.encoding.ids[:1])
            else:
                found.add(known)
        if not found:
            raise RequestError("None of the targets is anything in this model's vocabulary. Name at least one token.")
        return np.array(sorted(found), np.int64)
