"""What pipelines of sounds share: reading them, and running their features through a session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..audio import AudioProcessor, Sound
from ..audio.sound import is_sound
from ..errors import DamagedError, RequestError
from ..manifest import Artifact, Manifest
from ..session import Session
from ..tokenizer import Tokenizer
from .base import Outputs, Pipeline, grouped, run_rows, whole, widened

T = TypeVar("T")


class SoundPipeline(Pipeline):
    """A pipeline that reads sounds: WAV files, their bytes, arrays, or mappings of `array` and `sampling_rate`.

    The outputs of `per_frame` have an axis that follows time. Sounds run one by one unless a call says otherwise:
    without a mask a model hears the padding of a batch.
    """

    batch_size = 1
    per_frame: ClassVar[tuple[str, ...]] = ()

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer | None, session: Session):
        super().__init__(manifest, tokenizer, session)
        data = manifest.preprocess.get("audio")
        if data is None:
            raise DamagedError("The manifest does not say how sounds are prepared (preprocess.audio). Export it again.")
        self.processor = AudioProcessor(data)
        artifact = self.hearing(session)
        spec = next((spec for spec in artifact.inputs if spec.name == self.processor.input), None)
        extra = {spec.name for spec in artifact.inputs} - {self.processor.input, self.processor.mask}
        if spec is None or extra:
            wrong = ", ".join(sorted(extra)) or "none of it"
            raise DamagedError(f"{artifact.path} takes {wrong}, which sounds are not made into. Export it again.")
        self._batch_axis, self._length_axis = spec.dims[0], spec.dims[1 + self.processor.time_axis]

    def hearing(self, session: Session) -> Artifact:
        """The artifact that takes the sound."""
        return session.artifact

    @property
    def sampling_rate(self) -> int:
        """The rate in Hz that plain arrays must be at; files and mappings are resampled to it."""
        return self.processor.rate

    def listed_sounds(self, inputs: Any) -> tuple[list[Sound], bool]:
        """The sounds of a call, and whether it gave just one. Raises RequestError."""
        if is_sound(inputs):
            return [self.processor.sound(inputs)], True
        if not isinstance(inputs, Sequence) or not all(is_sound(item) for item in inputs):
            raise RequestError(
                f"Expected a sound (the path of a WAV file, its bytes, an array at {self.sampling_rate} Hz, or a "
                f"mapping of array and sampling_rate), or a list of them, got {type(inputs).__name__}."
            )
        return [self.processor.sound(item) for item in inputs], False

    def run_sounds(
        self, sounds: Sequence[Sound], read: Callable[[Outputs, Sound], T], batch_size: int | None = None
    ) -> list[T]:
        """Run sounds through the model and read a result from the outputs of each, in the order of the sounds.

        `read` gets the outputs of one sound, the leading axis removed, frames of padding cut off and half precision
        widened.

        Raises:
            RequestError: a sound is too short or too long for the model.
        """
        size = whole("batch_size", batch_size) or self.batch_size
        features = [self.processor.features(sound) for sound in sounds]
        lengths = [array.shape[self.processor.time_axis] for array in features]
        results: dict[int, T] = {}
        for group in grouped(lengths, size, self._batch_axis, self.processor.mask is not None):
            inputs = self.processor.batch([features[index] for index in group], self._length_axis)
            padded = inputs[self.processor.input].shape[1 + self.processor.time_axis]
            outputs = run_rows(self.session, inputs, self._batch_axis)
            for row, index in enumerate(group):
                mine = {name: widened(outputs[name][row]) for name in self.outputs}
                for name in self.per_frame:
                    mine[name] = mine[name][: self.frames(lengths[index], padded, len(mine[name]))]
                results[index] = read(mine, sounds[index])
        return [results[index] for index in range(len(sounds))]

    def frames(self, used: int, padded: int, total: int) -> int:
        """How many of `total` output frames belong to the first `used` of `padded` steps of the input."""
        if used == padded:
            return total
        convolution = self.manifest.postprocess.get("frames")
        if convolution is None:
            return min(total, max(1, round(total * used / padded)))
        return min(total, max(0, (used - convolution["kernel"]) // convolution["stride"] + 1))

    @property
    def seconds_per_frame(self) -> float:
        """How far apart output frames are. Raises DamagedError when the bundle does not say."""
        samples = self.manifest.postprocess.get("samples_per_frame")
        if not samples:
            raise DamagedError("The manifest does not say how long a frame is (postprocess.samples_per_frame).")
        return samples / self.processor.rate


class SoundFeatures(SoundPipeline):
    """The states that a model without a head has of a sound."""

    task = "feature-extraction"
    outputs = ("last_hidden_state",)
    per_frame = ("last_hidden_state",)

    def __call__(self, inputs: Any, *, batch_size: int | None = None) -> Any:
        """The states of a sound, (frames, width) float32; for a list of sounds a list of such arrays.

        Raises:
            RequestError: something that is no sound.
        """
        sounds, single = self.listed_sounds(inputs)
        results = self.run_sounds(sounds, lambda outputs, _: np.array(outputs["last_hidden_state"]), batch_size)
        return results[0] if single else results
