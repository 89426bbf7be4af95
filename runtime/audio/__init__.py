"""Sounds in, the numbers a model takes out: files, resampling, and a checkpoint's features as data. Numpy alone."""

from __future__ import annotations

from .processor import AudioProcessor
from .sound import Sound, as_sound
from .wav import read_wav, write_wav

__all__ = ["AudioProcessor", "Sound", "as_sound", "read_wav", "write_wav"]
