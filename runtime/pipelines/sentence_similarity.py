"""Sentence vectors, and how alike sentences are."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..manifest import Manifest
from ..preprocess import text_preparer
from ..session import Session
from ..tokenizer import Tokenizer
from .base import TextPipeline, listed


class SentenceSimilarity(TextPipeline):
    """Vectors of whole texts. Pooling and what follows it are part of the model, as its checkpoint defines them."""

    task = "sentence-similarity"
    outputs = ("sentence_embedding",)

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, session: Session):
        super().__init__(manifest, tokenizer, session)
        self._prepare = text_preparer(manifest.preprocess)

    def __call__(
        self, inputs: Any, *, prompt: str | None = None, prompt_name: str | None = None, batch_size: int | None = None
    ) -> np.ndarray:
        """The vector of a text (truncated to what the model takes), or of each of a list.

        Args:
            prompt: put before each text. None: the prompt of that name, or the checkpoint's default one, if any.
            prompt_name: one of the prompts that the checkpoint defines (`query`, `passage`, ...).

        Returns:
            (D,) float32, for a list of N texts (N, D).

        Raises:
            RequestError: something that is not text, or a prompt that the checkpoint does not define.
        """
        items, single = listed(inputs, (str,), "a text")
        prepare = self._prepare
        if prompt is not None:
            prepare = text_preparer({"prompts": {"": prompt}}, "")
        elif prompt_name is not None:
            prepare = text_preparer(self.manifest.preprocess, prompt_name)
        windows = self.tokenizer.encode(list(map(prepare, items)), max_length=self.max_length)
        vectors = self.run_windows(windows, lambda outputs, _: outputs["sentence_embedding"], batch_size)
        if single:
            return vectors[0]
        return np.stack(vectors) if vectors else np.zeros((0, self._width), np.float32)

    def similarity(self, first: Any, second: Any) -> float | np.ndarray:
        """The cosine of two texts, or (N, M) those of N texts with M texts. Takes vectors in place of texts as well."""
        left, right = self._vectors(first), self._vectors(second)
        cosine = _unit(np.atleast_2d(left)) @ _unit(np.atleast_2d(right)).T
        if left.ndim == right.ndim == 1:
            return float(cosine[0, 0])
        return cosine

    @property
    def _width(self) -> int:
        spec = self.session.artifact.output("sentence_embedding")
        return (spec.dims[-1].size or 0) if spec is not None else 0

    def _vectors(self, given: Any) -> np.ndarray:
        return given if isinstance(given, np.ndarray) else self(given)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(vectors.dtype).tiny)
