"""Speech recognition by an encoder that hears and a decoder that writes (Whisper, Speech2Text, Moonshine)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..audio import Sound
from ..errors import DamagedError, RequestError
from ..generation.generate import Cancel, Job, sequences
from ..generation.settings import Settings
from ..generation.text import TextGenerator
from ..generation.timestamps import TimedDecoder
from ..manifest import Artifact, Manifest
from ..results import Chunk, Transcript
from ..session import Session
from ..tokenizer import Tokenizer
from .sounds import SoundPipeline

# Of Whisper's encoder: two steps of its input are one of its positions, and one time token.
_STRIDE = 2


class SpeechRecognition(SoundPipeline):
    """What is said in a sound; by models that say times (Whisper) also when. Long sounds are heard window by window."""

    task = "automatic-speech-recognition"
    timestamps = True  # what `return_timestamps` is asked for on the command line
    outputs = ("logits",)
    needs_tokenizer = True

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, session: Session):
        self.generator = TextGenerator(manifest, tokenizer, session)
        super().__init__(manifest, tokenizer, session)
        self.tokenizer = tokenizer
        timed = manifest.generation.get("no_timestamps_token_id") is not None
        precision = _STRIDE * self.processor.hop / self.processor.rate
        self.timed = TimedDecoder(manifest.generation, precision) if timed else None

    def hearing(self, session: Session) -> Artifact:
        """The artifact that takes the sound."""
        encoder = self.generator.session.encoder
        if encoder is None:
            raise DamagedError(f"{session.artifact.path} has no encoder beside it. Export the bundle again.")
        return encoder.artifact

    def __call__(
        self,
        inputs: Any,
        *,
        return_timestamps: bool = False,
        language: str | None = None,
        task: str | None = None,
        cancel: Cancel = None,
        **options: Any,
    ) -> Any:
        """Transcribe a sound, or each of a list.

        Args:
            inputs: as for `audio-classification`.
            return_timestamps: gives `chunks`, segments with their times in seconds, where the model says times.
            language: what is spoken, by its code (`fr`); None: what the checkpoint says, or what is heard.
            task: `transcribe` or `translate` (to English), where the model does both.
            cancel, options: as in text generation; greedy unless `num_beams` says otherwise (Transformers' pipeline
                takes 5).

        Returns:
            A `Transcript`; for a list of inputs a list of them.

        Raises:
            RequestError: something that is no sound, or an option that does not exist or that the model does not have.
        """
        sounds, single = self.listed_sounds(inputs)
        if not isinstance(return_timestamps, bool):
            raise RequestError("return_timestamps is True (segments) or False; times of words are not known here.")
        if self.timed is None and (return_timestamps or language is not None or task is not None):
            raise RequestError("This model says no times, and is told no language or task.")
        settings = self.generator.settings(**options)
        if self.timed is None:
            results = [self._plain(sound, settings, cancel) for sound in sounds]
        else:
            asked = (language, task, return_timestamps)
            results = [self._timed(self.timed, sound, settings, asked, cancel) for sound in sounds]
        return results[0] if single else results

    def _plain(self, sound: Sound, settings: Settings, cancel: Cancel) -> Transcript:
        feeds = self.processor.batch([self.processor.features(sound)], self._length_axis)
        return Transcript(self.generator.texts(self.generator.job((), settings, feeds, cancel))[0])

    def _timed(
        self,
        timed: TimedDecoder,
        sound: Sound,
        settings: Settings,
        asked: tuple[str | None, str | None, bool],
        cancel: Cancel,
    ) -> Transcript:
        language, task, shown = asked
        features = self.processor.whole(sound)
        window = self._length_axis.largest or features.shape[self.processor.time_axis]
        total = max(features.shape[self.processor.time_axis], window)
        times = shown or total > window  # without times nothing says where the next window begins
        said: list[int] = []
        prompt: list[int] | None = None
        place, windows = 0, 0
        while place < total:
            feeds = self._window(features, place, window)
            beside = self.generator.session.encode(feeds)
            if prompt is None:
                prompt = timed.prompt(language, task, times, functools.partial(self._likeliest, beside))
            windows += 1
            new = self._say(timed, beside, prompt, self._longer(settings, len(prompt), windows), times, cancel)
            heard = min(window, total - place)
            step = timed.segments(new, heard, _STRIDE)
            said += timed.kept(new)
            place += step or heard  # a segment that ends where it began would be heard for ever
        chunks = [
            Chunk(text, when)
            for text, when in timed.chunks(said, self.tokenizer.special_token_ids, self.tokenizer.decode)
        ]
        return Transcript("".join(chunk.text for chunk in chunks), chunks if shown else None)

    def _window(self, features: np.ndarray, place: int, window: int) -> dict[str, np.ndarray]:
        """Features from a step on, zeros behind their end."""
        axis = self.processor.time_axis
        part = np.take(features, np.arange(place, min(place + window, features.shape[axis])), axis=axis)
        missing = window - part.shape[axis]
        part = np.pad(part, [(0, missing if index == axis else 0) for index in range(part.ndim)])
        return self.processor.batch([part], self._length_axis)

    def _likeliest(self, beside: dict[str, np.ndarray], ids: Sequence[int]) -> int:
        start = int(self.manifest.generation["decoder_start_token_id"])
        scores = self.generator.session.decoder.start(beside).feed(np.array([[start]]))[0]
        return int(max(ids, key=lambda token: scores[token]))

    def _say(
        self,
        timed: TimedDecoder,
        beside: dict[str, np.ndarray],
        prompt: list[int],
        settings: Settings,
        times: bool,
        cancel: Cancel,
    ) -> list[int]:
        """What the decoder says of a window, its end token left out."""
        eos = settings.eos_token_id[0] if settings.eos_token_id else timed.no_times
        job = Job(
            lambda: self.generator.session.decoder.start(beside),
            tuple(prompt),
            settings,
            self.generator.context,
            extra=(timed.rules(len(prompt), eos),) if times else (),
            cancel=cancel,
        )
        new = sequences(job)[0]
        return new[:-1] if new and new[-1] in settings.eos_token_id else new

    def _longer(self, settings: Settings, begun: int, windows: int) -> Settings:
        """`max_length` does not count what decoders are told: of each window so far, as Transformers does."""
        if settings.max_new_tokens is not None or settings.max_length is None:
            return settings
        more = begun if self.generator.context is None else min(begun, self.generator.context // 2 - 1)
        return dataclasses.replace(settings, max_length=settings.max_length + more * windows)
