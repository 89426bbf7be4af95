"""What callers hand over as a sound, in one form."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import RequestError
from .resample import resample
from .wav import parse_wav, read_wav


@dataclass(frozen=True)
class Sound:
    """A waveform of one channel: float32 (samples,), in [-1, 1] as a rule, and its sampling rate in Hz."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return self.samples.size / self.rate

    def at(self, rate: int) -> Sound:
        """The sound at another sampling rate."""
        return self if rate == self.rate else Sound(resample(self.samples, self.rate, rate), rate)


def is_sound(value: Any) -> bool:
    """Whether a value is one sound, in any of the forms that `as_sound` takes."""
    return isinstance(value, (str, os.PathLike, bytes, Sound, np.ndarray, dict))


def as_sound(value: Any, rate: int) -> Sound:
    """A sound at `rate` Hz, its channels averaged.

    Args:
        value: the path of a WAV file, its bytes, a `Sound`, an array (samples,) or (channels, samples) that is already
            at `rate`, or a mapping with `array` (or `raw`) and `sampling_rate`.

    Raises:
        RequestError: it is none of these, holds no samples, or samples that are not numbers.
    """
    if isinstance(value, Sound):
        return value.at(rate)
    if isinstance(value, (str, os.PathLike)):
        rows, found = read_wav(value)  # type: ignore[arg-type]
    elif isinstance(value, bytes):
        rows, found = parse_wav(value)
    elif isinstance(value, dict):
        array = value.get("array", value.get("raw"))
        if array is None or "sampling_rate" not in value:
            raise RequestError("A sound as a mapping needs 'array' (or 'raw') and 'sampling_rate'.")
        rows, found = np.asarray(array), int(value["sampling_rate"])
    elif isinstance(value, np.ndarray):
        rows, found = value, rate
    else:
        raise RequestError(f"Expected a sound (a WAV file's path, or samples), got {type(value).__name__}.")
    return Sound(_mono(rows), found).at(rate)


def _mono(rows: np.ndarray) -> np.ndarray:
    if rows.dtype.kind not in "fiu" or rows.ndim not in (1, 2) or rows.size == 0:
        raise RequestError(
            f"Expected samples of shape (samples,) or (channels, samples), got {rows.dtype}{rows.shape}."
        )
    if rows.dtype.kind in "iu":
        raise RequestError("Whole numbers as samples: scale them to floats in [-1, 1] (16-bit ones by 1/32768).")
    if rows.ndim == 2 and rows.shape[0] > rows.shape[1]:
        raise RequestError(f"Samples of shape {rows.shape}: channels come first, (channels, samples).")
    if not np.isfinite(rows).all():
        raise RequestError("The sound has samples that are not finite.")
    return np.ascontiguousarray(rows if rows.ndim == 1 else rows.mean(axis=0), np.float32)
