"""Text from pictures: captions, printed lines, documents, by an encoder that looks and a decoder that writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..generation.generate import Cancel, Job
from ..generation.text import TextGenerator
from ..manifest import Manifest
from ..results import Generated
from ..session import Session
from ..tokenizer import Tokenizer
from .images import ImagePipeline, pictures


class ImageToText(ImagePipeline):
    """What a model writes about a picture, or reads in it."""

    task = "image-to-text"
    outputs = ("logits",)
    extra = ("decoder_input_ids",)
    needs_tokenizer = True

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, session: Session):
        super().__init__(manifest, tokenizer, session)
        self.tokenizer = tokenizer
        self.generator = TextGenerator(manifest, tokenizer, session)

    def __call__(self, inputs: Any, *, prompt: str | None = None, cancel: Cancel = None, **options: Any) -> Any:
        """Write something of a picture, or of each of a list.

        Args:
            inputs: as for image classification.
            prompt: what the decoder begins with (Donut's `<s_cord-v2>`), taken as it is; None: the model's first token.
            cancel, options: as in text generation.

        Returns:
            A list of `Generated`, one for each of `num_return_sequences`; for a list of inputs a list of such lists.

        Raises:
            RequestError: something that is no picture, or an option that does not exist.
        """
        items, single = pictures(inputs)
        jobs = [self._job(item, prompt, cancel, options) for item in items]
        results = [[Generated(text) for text in self.generator.texts(job)] for job in jobs]
        return results[0] if single else results

    def stream(
        self, picture: Any, *, prompt: str | None = None, cancel: Cancel = None, **options: Any
    ) -> Iterator[str]:
        """What a call gives for one picture, in pieces as they are made; arguments likewise."""
        (item,), _ = pictures(picture)
        return self.generator.stream(self._job(item, prompt, cancel, options))

    def _job(self, item: Any, prompt: str | None, cancel: Cancel, options: dict[str, Any]) -> Job:
        settings = self.generator.settings(**options)
        ids: list[int] = []
        if prompt is not None:
            (window,) = self.tokenizer.encode([prompt], truncation=None, add_special_tokens=False)
            ids = window.encoding.ids
        feeds = self.processor.batch([self.processor.prepare(item)])
        return self.generator.job(ids, settings, feeds, cancel)
