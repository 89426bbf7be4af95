"""Speech recognition by models that name a character at each moment (CTC)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..audio import Sound
from ..audio.ctc import Vocabulary
from ..errors import DamagedError, RequestError
from ..manifest import Manifest
from ..results import Chunk, Transcript
from ..session import Session
from ..tokenizer import Tokenizer
from .base import choice
from .sounds import SoundPipeline


class SpeechRecognitionCTC(SoundPipeline):
    """What is said in a sound, and when. Long sounds are heard in overlapping chunks."""

    task = "automatic-speech-recognition"
    timestamps = "word"  # what `return_timestamps` is asked for on the command line
    outputs = ("logits",)
    per_frame = ("logits",)

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer | None, session: Session):
        super().__init__(manifest, tokenizer, session)
        data = manifest.postprocess.get("ctc")
        if data is None:
            raise DamagedError("The manifest has no vocabulary (postprocess.ctc): the checkpoint had no tokenizer.")
        self.vocabulary = Vocabulary.from_json(data)

    def __call__(
        self,
        inputs: Any,
        *,
        return_timestamps: str | None = None,
        chunk_length_s: float = 0.0,
        stride_length_s: float | Sequence[float] | None = None,
        batch_size: int | None = None,
        language: str | None = None,
    ) -> Any:
        """Transcribe a sound, or each of a list.

        Args:
            inputs: as for `audio-classification`.
            return_timestamps: `char` or `word` gives `chunks` with their times in seconds.
            chunk_length_s: hear the sound in chunks of so many seconds; 0: in one, or where it is longer than the
                artifact takes, in the longest that it takes.
            stride_length_s: seconds at the left and right of a chunk (or of each side) that are heard but not kept,
                there for context; None: a sixth of the chunk.
            language: only models with a decoder are told one.

        Returns:
            A `Transcript`; for a list of inputs a list of them.

        Raises:
            RequestError: something that is no sound, or an option that does not exist.
        """
        if language is not None:
            raise RequestError("This model hears the one language that it was trained on: leave the language out.")
        sounds, single = self.listed_sounds(inputs)
        if return_timestamps is not None:
            choice("return_timestamps", return_timestamps, ("char", "word"))
        results = [
            self._transcript(self._said(sound, chunk_length_s, stride_length_s, batch_size), return_timestamps)
            for sound in sounds
        ]
        return results[0] if single else results

    def _transcript(self, ids: np.ndarray, timestamps: str | None) -> Transcript:
        characters = self.vocabulary.characters(ids)
        if timestamps is None:
            return Transcript(self.vocabulary.text(characters))
        step = self.seconds_per_frame
        spoken = characters if timestamps == "char" else self.vocabulary.words(characters)
        chunks = [Chunk(one.text, (one.start * step, one.end * step)) for one in spoken]
        return Transcript(self.vocabulary.text(characters), chunks)

    def _said(self, sound: Sound, chunk: float, stride: float | Sequence[float] | None, size: int | None) -> np.ndarray:
        """The most probable token of each frame."""
        length, left, right = self._chunking(sound, chunk, stride)
        if not length:
            return self.run_sounds([sound], lambda outputs, _: outputs["logits"].argmax(axis=-1), size)[0]
        total = sound.samples.size
        parts, kept = [], []
        for start in range(0, total, length - left - right):
            part = sound.samples[start : start + length]
            last = start + length >= total
            before, after = left if start else 0, 0 if last else right
            if part.size > before:
                parts.append(Sound(part, sound.rate))
                kept.append(self._kept(part.size, before, after))
            if last:
                break
        ids = self.run_sounds(parts, lambda outputs, _: outputs["logits"].argmax(axis=-1), size)
        return np.concatenate([row[start:end] for row, (start, end) in zip(ids, kept, strict=True)])

    def _chunking(self, sound: Sound, chunk: float, stride: float | Sequence[float] | None) -> tuple[int, int, int]:
        """Length of a chunk and what is dropped at its left and right, in samples. Length 0: no chunks."""
        frame = round(self.seconds_per_frame * sound.rate)
        if not chunk:
            most = self._longest()
            if most is None or sound.samples.size <= most:
                return 0, 0, 0
            chunk = most // frame * frame / sound.rate
        sides = (
            [chunk / 6] * 2 if stride is None else [stride] * 2 if isinstance(stride, (int, float)) else list(stride)
        )
        length, left, right = (round(seconds * sound.rate / frame) * frame for seconds in (chunk, *sides))
        if length <= left + right:
            raise RequestError(f"Chunks of {chunk:g} s are no longer than their strides; ask for longer ones.")
        return length, left, right

    def _longest(self) -> int | None:
        """The most samples that the artifact takes at once; None: any number, or features of a fixed length."""
        most = self._length_axis.largest
        return most * self.processor.hop if most is not None else None

    def _kept(self, size: int, before: int, after: int) -> tuple[int, int]:
        """The frames of a chunk that are kept, its strides taken off."""
        frames = round(size / (self.seconds_per_frame * self.processor.rate))
        return round(before / size * frames), frames - round(after / size * frames)
