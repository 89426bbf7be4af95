"""Classes of whole texts, or text pairs."""

from __future__ import annotations

from typing import Any

from ..errors import RequestError
from .base import TextPipeline, listed
from .labels import label_reader


class TextClassification(TextPipeline):
    """Scores of all classes, best first."""

    task = "text-classification"
    outputs = ("logits",)

    def __call__(
        self,
        inputs: Any,
        *,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        batch_size: int | None = None,
    ) -> Any:
        """Classify a text, or each of a list. Long texts are truncated to what the model takes.

        Args:
            inputs: a text, a pair `{"text": ..., "text_pair": ...}`, or a list of these.
            top_k: how many labels; None, the default, gives all (Transformers' meaning of `top_k=None`).
            function_to_apply: `softmax`, `sigmoid` or `none`; None does what the checkpoint was trained for.

        Returns:
            Labels, best first; for a list of inputs a list of such lists.

        Raises:
            RequestError: something that is not text, or an option that does not exist.
        """
        items, single = listed(inputs, (str, dict), "a text or a {'text', 'text_pair'} pair")
        read = label_reader(self, top_k, function_to_apply)
        if all(isinstance(item, str) for item in items):
            windows = self.tokenizer.encode(items, max_length=self.max_length)
        else:
            windows = [window for item in items for window in self._encode(item)]
        results = self.run_windows(windows, read, batch_size)
        return results[0] if single else results

    def _encode(self, item: str | dict[str, str]) -> list[Any]:
        if isinstance(item, str):
            return self.tokenizer.encode([item], max_length=self.max_length)
        if "text" not in item or set(item) - {"text", "text_pair"}:
            raise RequestError(
                f"A pair is {{'text': ..., 'text_pair': ...}}; got the keys {', '.join(map(str, item))}."
            )
        pair = item.get("text_pair")
        return self.tokenizer.encode([item["text"]], None if pair is None else [pair], max_length=self.max_length)
