"""Sounds made here: what audio models are proven on, as `texts.py` is for models of language.

Nothing recorded: voiced syllables with gliding pitch and formants, hisses between them, pauses, room noise and tones,
the same every time.
"""

from __future__ import annotations

import functools

import numpy as np

from ...runtime.audio import Sound

_FORMANTS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))


@functools.lru_cache(maxsize=64)
def speech(seconds: float, rate: int, seed: int, level: float = 0.3) -> Sound:
    """Something like a person talking: (samples,) float32 within [-1, 1]."""
    random = np.random.default_rng(seed)
    count = max(round(seconds * rate), 1)
    time = np.arange(count) / rate
    voice = np.zeros(count)
    pitch = random.uniform(90, 220)
    start = random.uniform(0, 0.05)
    while start < seconds:
        length = random.uniform(0.12, 0.35)
        inside = (time >= start) & (time < start + length)
        local = time[inside] - start
        envelope = np.sin(np.pi * np.clip(local / length, 0, 1)) ** random.uniform(0.5, 2.0)
        if random.random() < 0.75:
            glide = pitch * (1 + random.uniform(-0.25, 0.25) * local / length)
            phase = 2 * np.pi * np.cumsum(glide) / rate
            formants = _FORMANTS[random.integers(len(_FORMANTS))]
            for harmonic in range(1, max(2, int(min(4000, rate / 2.2) / pitch))):
                strength = sum(np.exp(-(((harmonic * pitch - formant) / 180) ** 2)) for formant in formants)
                voice[inside] += (strength + 0.3 / harmonic) * envelope * np.sin(harmonic * phase)
        else:
            hiss = np.diff(random.standard_normal(local.size + 1))
            voice[inside] += 0.4 * envelope * hiss
        start += length + (random.uniform(0.15, 0.5) if random.random() < 0.2 else random.uniform(0, 0.05))
    voice += 0.003 * random.standard_normal(count)
    return Sound((level * voice / max(np.abs(voice).max(), 1e-9)).astype(np.float32), rate)


def noise(seconds: float, rate: int, seed: int, level: float = 0.1) -> Sound:
    """White noise of that standard deviation."""
    samples = np.random.default_rng(seed).standard_normal(round(seconds * rate)) * level
    return Sound(np.clip(samples, -1, 1).astype(np.float32), rate)


def tone(seconds: float, rate: int, hertz: float, level: float = 0.5) -> Sound:
    """A sine that fades in and out."""
    time = np.arange(round(seconds * rate)) / rate
    fade = np.sin(np.pi * np.linspace(0, 1, time.size))
    return Sound((level * fade * np.sin(2 * np.pi * hertz * time)).astype(np.float32), rate)


def pause(sound: Sound, seconds: float) -> Sound:
    """The sound, and so long nothing at all."""
    return Sound(np.concatenate([sound.samples, np.zeros(round(seconds * sound.rate), np.float32)]), sound.rate)


def probes(rate: int, longest: float) -> list[tuple[str, Sound]]:
    """Named sounds at `rate` Hz of at most `longest` seconds: what a feature extractor is proven on."""
    made = [
        ("speech", speech(2.3, rate, 1)),
        ("quiet-speech", speech(1.1, rate, 2, level=0.01)),
        ("loud-speech", speech(3.7, rate, 3, level=0.99)),
        ("noise", noise(0.9, rate, 4)),
        ("tone", tone(1.6, rate, 440.0)),
        ("pause", pause(speech(0.6, rate, 5), 0.5)),
    ]
    most = max(int(longest * rate), 1)
    return [(name, Sound(sound.samples[:most], rate)) for name, sound in made]
