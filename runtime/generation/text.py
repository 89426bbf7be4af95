"""Text from a model that generates: what pipelines of every kind of input share once they have a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import RequestError
from ..manifest import Manifest
from ..session import Session
from ..tokenizer import Tokenizer
from .decoder import Decoder
from .generate import Cancel, Job, sequences, tokens
from .sampling import Processor
from .session import GenerationSession
from .settings import Settings
from .stream import Detokenizer, StopStrings, pieces


class TextGenerator:
    """A bundle's model, tokenizer and defaults, ready to go on from prompts.

    `context` is how many tokens the decoder holds; None: there is no limit.
    """

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, session: Session):
        self.defaults = manifest.generation
        self.tokenizer = tokenizer
        if not isinstance(session, GenerationSession):  # one artifact without a cache
            session = GenerationSession(session.artifact, Decoder(session, self.defaults.get("context")))
        self.session = session
        self.context = session.decoder.context

    def settings(self, *defaults: Mapping[str, Any], **asked: Any) -> Settings:
        """The checkpoint's defaults, then `defaults`, then what a call asks for (`Settings.of`).

        A stop string that is a special token, which the text does not show, ends the text as that token.
        """
        settings = Settings.of(self.defaults, *defaults, **asked)
        special = self.tokenizer.special_token_ids
        ends = [self.tokenizer.token_id(string) for string in settings.stop_strings]
        more = [end for end in ends if end is not None and end in special]
        if not more:
            return settings
        return Settings.of(self.defaults, *defaults, **{**asked, "eos_token_id": [*settings.eos_token_id, *more]})

    def job(
        self,
        prompt: Sequence[int],
        settings: Settings,
        feeds: dict[str, np.ndarray] | None = None,
        cancel: Cancel = None,
        extra: Sequence[Processor] = (),
    ) -> Job:
        """What is to be generated after a prompt (empty: after the first token), about what the encoder reads."""
        beside = self.session.encode(feeds or {})
        return Job(
            lambda: self.session.decoder.start(beside),
            tuple(prompt) or (settings.first_token,),
            settings,
            self.context,
            None if feeds is None or "input_ids" not in feeds else feeds["input_ids"],
            tuple(extra),
            cancel,
            self._watch(settings.stop_strings),
        )

    def texts(self, job: Job) -> list[str]:
        """The new text of each sequence, special tokens left out, up to the first stop string."""
        return [self._cut(ids, job.settings.stop_strings) for ids in sequences(job)]

    def stream(self, job: Job) -> Iterator[str]:
        """The new text as it is made. Joined, it is the text that `texts` gives. Closing it ends the work.

        Of beams nothing is certain before the end: their text comes as one piece.

        Raises:
            RequestError: several sequences at once, or a prompt that does not fit.
        """
        if job.settings.num_return_sequences > 1:
            raise RequestError("Only one text can be streamed: num_return_sequences must be 1.")
        job.longest  # noqa: B018 - a prompt that does not fit is refused now, not when the first piece is taken
        if job.settings.num_beams > 1:
            return self._whole(job)
        return pieces(tokens(job), self.tokenizer, job.settings.stop_strings)

    def _whole(self, job: Job) -> Iterator[str]:
        yield from filter(None, self.texts(job))

    def _cut(self, ids: Sequence[int], stop_strings: Sequence[str]) -> str:
        stop = StopStrings(stop_strings)
        return stop.push(self.tokenizer.decode(ids, skip_special_tokens=True)) + stop.finish()

    def _watch(self, stop_strings: Sequence[str]) -> Callable[[], Callable[[int], bool]] | None:
        if not stop_strings:
            return None

        def make() -> Callable[[int], bool]:
            detokenizer, stop = Detokenizer(self.tokenizer), StopStrings(stop_strings)

            def done(token: int) -> bool:
                stop.push(detokenizer.push(token))
                return stop.found is not None

            return done

        return make
