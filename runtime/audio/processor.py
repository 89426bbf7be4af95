"""A checkpoint's feature extractor as the manifest's `preprocess["audio"]` states it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DamagedError, RequestError
from ..manifest import Dim
from .sound import Sound, as_sound
from .steps import STEPS, run_step


class AudioProcessor:
    """From sounds to a model's inputs.

    The data: `sampling_rate` in Hz; `steps`, from the waveform to the features; `input`, the name of the model's input;
    `mask`, the name of the one that says which of it is sound (None: the model takes none); `padding` (`value`, `side`)
    of shorter sounds in a batch; `hop`, how many samples one step along the features' time axis is.

    Raises:
        DamagedError: steps that this reader does not know.
    """

    def __init__(self, data: dict[str, Any]):
        unknown = [step.get("step") for step in data["steps"] if step.get("step") not in STEPS]
        if unknown:
            raise DamagedError(
                f"The manifest's preprocess.audio has a step '{unknown[0]}' that this palmtop does not know. "
                "Upgrade palmtop, or export the bundle again with this version."
            )
        self.rate: int = data["sampling_rate"]
        self.steps: list[dict[str, Any]] = data["steps"]
        self.input: str = data["input"]
        self.mask: str | None = data.get("mask")
        self.hop: int = data.get("hop", 1)
        padding = data.get("padding") or {}
        self.padding_value: float = padding.get("value", 0.0)
        self.padding_side: str = padding.get("side", "right")
        self.time_axis = 1 if self.steps and self.steps[-1]["step"] == "transpose" else 0

    def sound(self, value: Any) -> Sound:
        """What a caller gives as a sound, at the model's rate. Raises RequestError (see `as_sound`)."""
        return as_sound(value, self.rate)

    def features(self, sound: Sound) -> np.ndarray:
        """The model's input for one sound, without a batch axis: float32 (samples,), (frames, mels) or (mels, frames).

        Raises:
            RequestError: the sound is too short.
        """
        values: np.ndarray = sound.at(self.rate).samples.astype(np.float32, copy=False)
        for step in self.steps:
            values = run_step(values, step)
        return np.ascontiguousarray(values)

    def whole(self, sound: Sound) -> np.ndarray:
        """Features as above, of a sound that is longer than what they are cut to: all of it."""
        fixed = next((step["length"] for step in self.steps if step["step"] == "cut"), None)
        if fixed is None or sound.at(self.rate).samples.size <= fixed:
            return self.features(sound)
        values: np.ndarray = sound.at(self.rate).samples.astype(np.float32, copy=False)
        for step in self.steps:
            values = values if step["step"] in ("cut", "pad") else run_step(values, step)
        return np.ascontiguousarray(values)

    def batch(self, features: Sequence[np.ndarray], length: Dim | None = None) -> dict[str, np.ndarray]:
        """Features of several sounds as the model's inputs, padded to the longest, or to what the axis `length` takes.

        Raises:
            RequestError: the longest is longer than the axis takes.
        """
        axis = self.time_axis
        longest = max(array.shape[axis] for array in features)
        if length is not None:
            fitting = length.fit(longest)
            if fitting is None:
                most = length.largest or 0
                raise RequestError(
                    f"The sound is too long: {self.seconds(longest):.2f} s, the artifact takes "
                    f"{self.seconds(most):.2f} s at most. Cut it, or export with a greater --max-length."
                )
            longest = fitting
        rows, masks = [], []
        for array in features:
            used = array.shape[axis]
            ends = (longest - used, 0) if self.padding_side == "left" else (0, longest - used)
            around = [ends if place == axis else (0, 0) for place in range(array.ndim)]
            rows.append(np.pad(array, around, constant_values=self.padding_value))
            masks.append(np.pad(np.ones(used, np.int64), ends))
        inputs = {self.input: np.stack(rows)}
        if self.mask is not None:
            inputs[self.mask] = np.stack(masks)
        return inputs

    def seconds(self, steps: int) -> float:
        """How long so many steps along the time axis of the features are."""
        return steps * self.hop / self.rate
