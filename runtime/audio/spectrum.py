"""Spectra on the mel scale, by parameters that name every choice in which libraries differ."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

# The scales of O'Shaughnessy as in HTK, the same with natural logarithms as in Kaldi, and Slaney's: linear to 1 kHz.
_SCALES = ("htk", "kaldi", "slaney")
_SLANEY_STEP = 27.0 / np.log(6.4)


def to_mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    """Frequencies in Hz as mels."""
    hertz = np.asarray(hertz, np.float64)
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hertz / 700.0)
    if scale == "kaldi":
        return 1127.0 * np.log(1.0 + hertz / 700.0)
    logarithmic = 15.0 + np.log(np.maximum(hertz, 1000.0) / 1000.0) * _SLANEY_STEP
    return np.where(hertz >= 1000.0, logarithmic, 3.0 * hertz / 200.0)


def to_hertz(mels: np.ndarray, scale: str) -> np.ndarray:
    """Mels as frequencies in Hz."""
    mels = np.asarray(mels, np.float64)
    if scale == "htk":
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    if scale == "kaldi":
        return 700.0 * (np.exp(mels / 1127.0) - 1.0)
    return np.where(mels >= 15.0, 1000.0 * np.exp((np.maximum(mels, 15.0) - 15.0) / _SLANEY_STEP), 200.0 * mels / 3.0)


@functools.lru_cache(maxsize=8)
def mel_filters(
    bins: int, filters: int, low: float, high: float, rate: int, scale: str, slaney_norm: bool, in_mels: bool
) -> np.ndarray:
    """Triangular filters, float64 (bins, filters).

    Args:
        bins: of the spectrum, 1 + FFT length / 2.
        low, high: the edges of the first and last triangle in Hz.
        slaney_norm: each triangle has the same area (2 / width) rather than height.
        in_mels: the triangles are straight on the mel scale (Kaldi) rather than in Hz.
    """
    edges = np.linspace(to_mel(np.array(low), scale), to_mel(np.array(high), scale), filters + 2)
    if in_mels:
        places = to_mel(rate / ((bins - 1) * 2) * np.arange(bins), scale)
    else:
        edges = to_hertz(edges, scale)
        places = np.linspace(0, rate // 2, bins)
    widths = np.diff(edges)
    rising = (places[:, None] - edges[None, :-2]) / widths[:-1]
    falling = (edges[None, 2:] - places[:, None]) / widths[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    if slaney_norm:
        triangles *= 2.0 / (edges[2:] - edges[:-2])
    return triangles


@functools.lru_cache(maxsize=8)
def window(name: str, length: int, periodic: bool) -> np.ndarray:
    """A window as float64 (length,): `hann`, `hamming`, `povey` (Kaldi's: Hann to the power 0.85) or `boxcar`."""
    points = length + 1 if periodic else length
    shapes: dict[str, Callable[[int], np.ndarray]] = {
        "boxcar": np.ones,
        "hann": np.hanning,
        "hamming": np.hamming,
        "povey": lambda count: np.hanning(count) ** 0.85,
    }
    return shapes[name](points)[:length]


def frames(samples: np.ndarray, length: int, hop: int) -> np.ndarray:
    """Overlapping frames (count, length) of a waveform; what does not fill a frame at its end is left out."""
    return np.lib.stride_tricks.sliding_window_view(samples, length)[::hop]


def power_spectrum(
    framed: np.ndarray, weights: np.ndarray, fft_length: int, pre_emphasis: float, dc: bool
) -> np.ndarray:
    """Power of each frequency, float64 (frames, 1 + fft_length / 2), of frames (frames, length).

    Args:
        weights: the window.
        pre_emphasis: each sample less this part of the one before it (of the first, of itself).
        dc: keep each frame's mean.
    """
    framed = framed.astype(np.float64)
    if not dc:
        framed = framed - framed.mean(axis=1, keepdims=True)
    if pre_emphasis:
        first = framed[:, :1] * (1.0 - pre_emphasis)
        framed = np.concatenate([first, framed[:, 1:] - pre_emphasis * framed[:, :-1]], axis=1)
    spectrum = np.fft.rfft(framed * weights, fft_length, axis=1)
    return spectrum.real**2 + spectrum.imag**2
