"""Which of some choices goes best with a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import RequestError
from ..manifest import Dim
from ..results import Choice
from ..tokenizer import Window
from .base import TextPipeline, listed, run_rows, whole, widened
from .maths import best, softmax

_EXPECTED = "a {'prompt', 'choices'} pair"


class MultipleChoice(TextPipeline):
    """Choices with their probabilities, best first."""

    task = "multiple-choice"
    outputs = ("logits",)

    def __call__(self, inputs: Any, choices: Sequence[str] | None = None, *, batch_size: int | None = None) -> Any:
        """Score choices for a prompt: `pipeline("The sun is", ["hot", "cold"])`.

        Each choice is read together with the prompt, as a text pair; the longer of the two is truncated first.

        Args:
            inputs: the prompt; without `choices`, `{"prompt": ..., "choices": [...]}` or a list of these.

        Returns:
            `Choice`s, best first; for a list of inputs a list of such lists.

        Raises:
            RequestError: no choices, more than the model takes, or something that is not text.
        """
        if choices is not None:
            if not isinstance(inputs, str):
                raise RequestError(f"Expected a prompt before the choices, got {type(inputs).__name__}.")
            inputs = {"prompt": inputs, "choices": choices}
        items, single = listed(inputs, (dict,), _EXPECTED)
        checked = [_checked(index, item) for index, item in enumerate(items)]
        size = whole("batch_size", batch_size) or self.batch_size
        rows = [
            self.tokenizer.encode([prompt] * len(options), options, max_length=self.max_length)
            for prompt, options in checked
        ]
        scores: dict[int, np.ndarray] = {}
        for group in self._batches(rows, size):
            for index, logits in zip(group, self._run([rows[index] for index in group]), strict=True):
                scores[index] = softmax(logits)
        results = [
            [Choice(options[i], float(scores[index][i]), i) for i in best(scores[index])]
            for index, (_, options) in enumerate(checked)
        ]
        return results[0] if single else results

    def _batches(self, rows: list[list[Window]], size: int) -> list[list[int]]:
        """Inputs of equally many choices and of similar length together."""
        if self._batch_axis.largest is not None:
            size = min(size, self._batch_axis.largest)
        by_count: dict[int, list[int]] = {}
        for index in sorted(range(len(rows)), key=lambda index: max(map(len, rows[index]))):
            by_count.setdefault(len(rows[index]), []).append(index)
        return [group[at : at + size] for group in by_count.values() for at in range(0, len(group), size)]

    def _run(self, rows: list[list[Window]]) -> np.ndarray:
        """Logits (inputs, choices) of inputs with equally many choices."""
        axis = self._choices_axis
        count = len(rows[0])
        fitting = axis.fit(count)
        if fitting is None:
            raise RequestError(f"{count} choices are more than this artifact takes ({axis}).")
        # Choices are scored one by one, so repeating the last one to fill a fixed axis changes nothing.
        windows = [window for row in rows for window in row + row[-1:] * (fitting - count)]
        flat = self.tokenizer.batch(windows, self._length_axis)
        inputs = {name: array.reshape(len(rows), fitting, -1) for name, array in flat.items()}
        return widened(run_rows(self.session, inputs, self._batch_axis)["logits"])[:, :count]

    @property
    def _choices_axis(self) -> Dim:
        return next(spec for spec in self.session.artifact.inputs if spec.name == "input_ids").dims[1]


def _checked(index: int, item: dict[str, Any]) -> tuple[str, list[str]]:
    if set(item) != {"prompt", "choices"} or not isinstance(item["prompt"], str):
        raise RequestError(f"Input {index}: expected {_EXPECTED}, got {repr(item)[:80]}.")
    choices = item["choices"]
    options = [] if isinstance(choices, str) else listed(choices, (str,), "a choice")[0]
    if not options:
        raise RequestError(f"Input {index}: give at least one choice, as a list of texts.")
    return item["prompt"], options
