"""Pictures against labels that are given with the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DamagedError, RequestError
from ..manifest import Manifest
from ..results import Label
from ..session import Session
from ..tokenizer import Tokenizer
from .base import run_rows, widened
from .images import ImagePipeline, pictures
from .maths import ACTIVATIONS


class ZeroShotImageClassification(ImagePipeline):
    """Which of some texts fits a picture best, for models of two towers (CLIP, arXiv:2103.00020; SigLIP)."""

    task = "zero-shot-image-classification"
    outputs = ("logits_per_image",)
    needs_tokenizer = True
    extra = ("input_ids", "attention_mask", "token_type_ids", "position_ids")

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, session: Session):
        super().__init__(manifest, tokenizer, session)
        self.tokenizer = tokenizer
        spec = self.input("input_ids")
        if spec is None:
            raise DamagedError(f"{session.artifact.path} takes no input_ids. Export the bundle again.")
        self._texts_axis, self._length_axis = spec.dims

    def __call__(
        self, inputs: Any, candidate_labels: Sequence[str] | str, *, hypothesis_template: str | None = None
    ) -> Any:
        """Rank labels for a picture, or for each of a list.

        Args:
            candidate_labels: what may be in the picture; a list, or one text with commas.
            hypothesis_template: a sentence with `{}` where the label goes; None: the bundle's.

        Returns:
            Labels, best first; for a list of inputs a list of such lists.

        Raises:
            RequestError: something that is no picture, no labels, or a template without `{}`.
            DamagedError: a damaged file.
        """
        items, single = pictures(inputs)
        if isinstance(candidate_labels, str):
            candidate_labels = [label.strip() for label in candidate_labels.split(",") if label.strip()]
        labels = list(candidate_labels)
        if not labels or not all(isinstance(label, str) for label in labels):
            raise RequestError("candidate_labels must be one text at least.")
        settings = self.manifest.postprocess
        template = hypothesis_template or settings.get("template", "{}")
        if "{}" not in template:
            raise RequestError(f"The template has no {{}} for the label: {template!r}.")
        activation = ACTIVATIONS[settings.get("activation", "softmax")]
        texts = self._tokenized([template.replace("{}", label) for label in labels])
        results = []
        for item in items:
            scores = activation(self._logits(item, texts, len(labels)))
            order = np.argsort(-scores, kind="stable")
            results.append([Label(labels[index], float(scores[index])) for index in order])
        return results[0] if single else results

    def _tokenized(self, texts: list[str]) -> dict[str, np.ndarray]:
        """All texts, padded to the longest; or to what the model was trained with, where it sees padding."""
        longest = min(self.tokenizer.spec.max_length, self._length_axis.largest or self.tokenizer.spec.max_length)
        windows = self.tokenizer.encode(texts, max_length=longest)
        fixed = self.manifest.preprocess.get("text", {}).get("pad_to")
        made = self.tokenizer.batch(windows, fixed if fixed is not None else self._length_axis)
        return {name: array for name, array in made.items() if self.input(name) is not None}

    def _logits(self, item: Any, texts: dict[str, np.ndarray], count: int) -> np.ndarray:
        """(labels,): each text against one picture, as many texts at a time as the artifact takes."""
        made = self.processor([item])
        image = {spec.name: made[spec.name] for spec in self._specs}
        step = min(count, self._texts_axis.largest or count)
        found = []
        for start in range(0, count, step):
            part = {name: array[start : start + step] for name, array in texts.items()}
            rows = len(next(iter(part.values())))
            fitting = self._texts_axis.fit(rows) or rows
            filled = {name: np.concatenate([a, a[-1:].repeat(fitting - rows, axis=0)]) for name, a in part.items()}
            logits = run_rows(self.session, {**image, **filled}, self._specs[0].dims[0])["logits_per_image"]
            found.append(widened(logits)[0, :rows])
        return np.concatenate(found)
