"""Text from text: translation, summaries, answers, by an encoder that reads and a decoder that writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DamagedError, RequestError
from ..generation.generate import Cancel, Job
from ..generation.text import TextGenerator
from ..manifest import Manifest
from ..results import Generated
from ..session import Session
from ..tokenizer import Tokenizer
from .base import Pipeline, listed


@dataclass(frozen=True)
class _Asked:
    """What a call says beside the text and how it is generated."""

    task: str | None
    src_lang: str | None
    tgt_lang: str | None
    prefix: str | None
    truncation: bool


class Text2TextGeneration(Pipeline):
    """What an encoder-decoder makes of a text.

    Prefixes and defaults of tasks ("translate English to French: ") are data of the checkpoint
    (`generation.task_specific_params`), and so are the languages of models that are told them by tokens
    (`generation.languages`, code to id; `generation.source_language`, the one that the tokenizer puts in).
    """

    task = "text2text-generation"
    outputs = ("logits",)
    needs_tokenizer = True

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, session: Session):
        super().__init__(manifest, tokenizer, session)
        self.tokenizer = tokenizer
        self.generator = TextGenerator(manifest, tokenizer, session)
        if self.generator.session.encoder is None:
            raise DamagedError(f"{session.artifact.path} has no encoder beside it. Export the bundle again.")
        inputs = self.generator.session.encoder.artifact.inputs
        extra = [spec.name for spec in inputs if spec.name not in tokenizer.spec.inputs]
        ids = next((spec for spec in inputs if spec.name == "input_ids"), None)
        if extra or ids is None:
            raise DamagedError(f"The encoder takes {', '.join(extra)}, which the tokenizer does not make.")
        self._length_axis = ids.dims[-1]
        self._tasks: dict[str, dict[str, Any]] = manifest.generation.get("task_specific_params") or {}
        self._languages: dict[str, int] = manifest.generation.get("languages") or {}

    def __call__(
        self,
        inputs: Any,
        *,
        task: str | None = None,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        prefix: str | None = None,
        truncation: bool = False,
        cancel: Cancel = None,
        **options: Any,
    ) -> Any:
        """Write something of a text, or of each of a list.

        Args:
            inputs: a text, or a list of texts.
            task: one of the checkpoint's own (`summarization`, `translation_en_to_fr`), for its prefix and defaults.
            src_lang, tgt_lang: languages, as the checkpoint names them.
            prefix: put before the text instead of the task's.
            truncation: cut texts to what the encoder takes, instead of refusing them.
            cancel, options: as in text generation.

        Returns:
            A list of `Generated`, one for each of `num_return_sequences`; for a list of inputs a list of such lists.

        Raises:
            RequestError: no text, a text that does not fit, a task or language that the checkpoint does not have.
        """
        items, single = listed(inputs, (str,), "a text")
        asked = _Asked(task, src_lang, tgt_lang, prefix, truncation)
        jobs = [self._job(item, asked, cancel, options) for item in items]
        results = [[Generated(text) for text in self.generator.texts(job)] for job in jobs]
        return results[0] if single else results

    def stream(
        self,
        text: str,
        *,
        task: str | None = None,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        prefix: str | None = None,
        truncation: bool = False,
        cancel: Cancel = None,
        **options: Any,
    ) -> Iterator[str]:
        """What a call gives for one text, in pieces as they are made; arguments likewise."""
        (item,), _ = listed(text, (str,), "a text")
        asked = _Asked(task, src_lang, tgt_lang, prefix, truncation)
        return self.generator.stream(self._job(item, asked, cancel, options))

    def _job(self, text: str, asked: _Asked, cancel: Cancel, options: dict[str, Any]) -> Job:
        defaults = self._task_defaults(asked)
        if asked.tgt_lang is not None and self._languages:
            defaults = {**defaults, "forced_bos_token_id": self._language(asked.tgt_lang)}
        settings = self.generator.settings(defaults, **options)
        prefix = defaults.get("prefix", "") if asked.prefix is None else asked.prefix
        feeds = self.feeds(prefix + text, asked.src_lang, asked.truncation)
        return self.generator.job((), settings, feeds, cancel)

    def feeds(self, text: str, src_lang: str | None = None, truncation: bool = False) -> dict[str, np.ndarray]:
        """What the encoder reads of a text: ids and mask, one row. Errors and arguments as in a call."""
        (window,) = self.tokenizer.encode(
            [text],
            max_length=self._length_axis.largest,
            truncation="longest_first" if truncation else None,
        )
        feeds = self.tokenizer.batch([window], self._length_axis)
        if src_lang is not None and self._languages:
            feeds = self._spoken(feeds, self._language(src_lang))
        return feeds

    def _task_defaults(self, asked: _Asked) -> dict[str, Any]:
        task, named = asked.task, [asked.src_lang, asked.tgt_lang]
        if task is None and not self._languages and named != [None, None]:
            if None in named:
                raise RequestError("This model has no tokens for languages: name both src_lang and tgt_lang.")
            task = f"translation_{asked.src_lang}_to_{asked.tgt_lang}"
        if task is None:
            return {}
        if task not in self._tasks:
            raise RequestError(f"This checkpoint has no task '{task}'. It has: {', '.join(self._tasks) or 'none'}.")
        return self._tasks[task]

    def _language(self, code: str) -> int:
        if code not in self._languages:
            raise RequestError(f"Unknown language '{code}'. This model has: {', '.join(self._languages)}.")
        return self._languages[code]

    def _spoken(self, feeds: dict[str, np.ndarray], language: int) -> dict[str, np.ndarray]:
        """The token of the tokenizer's own language replaced by that of another."""
        usual = self._languages.get(self.manifest.generation.get("source_language", ""))
        ids = feeds["input_ids"].copy()
        places = [place for place in (0, *np.nonzero(ids[0] == usual)[0][-1:]) if ids[0, place] == usual]
        if usual is None or not places:
            raise RequestError("This model's tokenizer puts no language before or behind texts; leave src_lang out.")
        ids[0, places[0]] = language
        return {**feeds, "input_ids": ids}
