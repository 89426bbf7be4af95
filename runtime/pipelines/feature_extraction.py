"""The states of a text's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .base import TextPipeline, choice, listed

POOLINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda states: states,
    "mean": lambda states: states.mean(axis=0),
    "cls": lambda states: states[0],
    "max": lambda states: states.max(axis=0),
}


class FeatureExtraction(TextPipeline):
    """Token states as arrays, special tokens included."""

    task = "feature-extraction"
    outputs = ("last_hidden_state",)
    per_token = ("last_hidden_state",)

    def __call__(self, inputs: Any, *, pooling: str = "none", batch_size: int | None = None) -> Any:
        """The states of a text (truncated to what the model takes), or of each of a list.

        Args:
            pooling: `none` gives one state a token; `mean`, `max` and `cls` (the first token) one vector a text.

        Returns:
            Without pooling (tokens, width) float32, for a list of inputs a list of such arrays; with pooling (width,),
            for a list of N inputs (N, width).

        Raises:
            RequestError: something that is not text.
        """
        pool = POOLINGS[choice("pooling", pooling, POOLINGS)]
        items, single = listed(inputs, (str,), "a text")
        windows = self.tokenizer.encode(items, max_length=self.max_length)
        results = self.run_windows(windows, lambda outputs, _: pool(outputs["last_hidden_state"]), batch_size)
        if single:
            return results[0]
        return results if pooling == "none" or not results else np.stack(results)
