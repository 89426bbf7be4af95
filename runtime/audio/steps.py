"""The steps from a waveform to a model's features. The manifest names them in order, each with its parameters.

A step takes an array and gives one: a waveform is (samples,), a spectrogram (frames, mels). Everything is float32
between steps. `docs/bundle.md` describes each for readers in other languages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import RequestError
from . import spectrum

Step = Callable[..., np.ndarray]


def scale(values: np.ndarray, *, by: float) -> np.ndarray:
    """Times a number: Kaldi's features are of 16-bit integers, so `by` 32768."""
    return values * np.float32(by)


def normalize(values: np.ndarray, *, epsilon: float) -> np.ndarray:
    """Zero mean and unit variance over the whole waveform: (x - mean) / sqrt(variance + epsilon)."""
    return (values - values.mean()) / np.sqrt(values.var() + epsilon)


def cut(values: np.ndarray, *, length: int) -> np.ndarray:
    """At most so many samples or frames."""
    return values[:length]


def pad(values: np.ndarray, *, length: int, value: float) -> np.ndarray:
    """At least so many samples or frames, a value after the end."""
    missing = length - len(values)
    if missing <= 0:
        return values
    return np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1), constant_values=value)


def mel_spectrogram(
    values: np.ndarray,
    *,
    rate: int,
    frame: int,
    hop: int,
    fft: int,
    window: str,
    periodic: bool,
    center: bool,
    dc: bool,
    pre_emphasis: float,
    mels: int,
    low: float,
    high: float,
    mel_scale: str,
    mel_norm: str,
    mel_triangles: str,
    floor: float,
    log: str,
) -> np.ndarray:
    """Logarithms of the power in mel bands, (frames, mels).

    Args:
        frame, hop, fft: lengths in samples of a frame, of the way to the next one, and of the Fourier transform.
        periodic: the window is that of one more sample, less the last.
        center: half a frame of the waveform's mirror image is put before and after it.
        dc: each frame keeps its mean.
        mel_norm: `slaney` or `none`; mel_triangles: straight in `hertz` or in `mels`.
        floor: power below it counts as this much.
        log: `ln`, `log10` or `db`.

    Raises:
        RequestError: the sound is too short for one frame.
    """
    least = frame // 2 + 1 if center else frame
    if len(values) < least:
        raise RequestError(f"The sound has {len(values)} samples at {rate} Hz; the model needs at least {least}.")
    if center:
        values = np.pad(values, frame // 2, mode="reflect")
    weights = spectrum.window(window, frame, periodic)
    filters = spectrum.mel_filters(
        fft // 2 + 1, mels, low, high, rate, mel_scale, mel_norm == "slaney", mel_triangles == "mels"
    )
    framed = spectrum.frames(values, frame, hop)
    # In pieces: half a minute of frames in float64 would be a hundred megabytes.
    power = [
        spectrum.power_spectrum(framed[start : start + 512], weights, fft, pre_emphasis, dc) @ filters
        for start in range(0, len(framed), 512)
    ]
    return (np.log(np.maximum(np.concatenate(power), floor)) * _LOGARITHMS[log]).astype(np.float32)


_LOGARITHMS = {"ln": 1.0, "log10": 1.0 / math.log(10.0), "db": 10.0 / math.log(10.0)}


def drop_last(values: np.ndarray) -> np.ndarray:
    """Without the last frame."""
    return values[:-1]


def limit_range(values: np.ndarray, *, below: float) -> np.ndarray:
    """Nothing further below the largest value than this."""
    return np.maximum(values, values.max() - np.float32(below))


def shift_scale(values: np.ndarray, *, add: float, by: float) -> np.ndarray:
    """(x + add) * by"""
    return ((values + np.float64(add)) * by).astype(np.float32)


def normalize_bands(
    values: np.ndarray, *, mean: bool, variance: bool, epsilon: float = 0.0, freedom: int = 0
) -> np.ndarray:
    """Each mel band with zero mean and/or unit variance over the frames (cepstral mean and variance normalisation).

    Bands without variance (silence) become 0. `freedom` is what is taken from the count of frames in the variance.
    """
    values = values - values.mean(axis=0) if mean else values
    if not variance:
        return values
    deviation = np.sqrt(values.var(axis=0, ddof=freedom) + epsilon) if len(values) > freedom else np.zeros(1)
    return np.divide(values, deviation, out=np.zeros_like(values), where=np.broadcast_to(deviation > 0, values.shape))


def stack_frames(values: np.ndarray, *, count: int, value: float) -> np.ndarray:
    """Each `count` neighbouring frames as one that holds their bands one after the other, the last one filled up."""
    values = pad(values, length=-(-len(values) // count) * count, value=value)
    return values.reshape(len(values) // count, -1)


def transpose(values: np.ndarray) -> np.ndarray:
    """(frames, mels) as (mels, frames)."""
    return values.T


STEPS: dict[str, Step] = {
    step.__name__: step
    for step in (
        scale,
        normalize,
        cut,
        pad,
        mel_spectrogram,
        drop_last,
        limit_range,
        shift_scale,
        normalize_bands,
        stack_frames,
        transpose,
    )
}


def run_step(values: np.ndarray, step: dict[str, Any]) -> np.ndarray:
    """One step of the manifest, `{"step": name, parameters}`."""
    parameters = {name: value for name, value in step.items() if name != "step"}
    return np.asarray(STEPS[step["step"]](values, **parameters), np.float32)
