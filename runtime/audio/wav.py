"""WAV files as arrays: PCM of 8, 16, 24 and 32 bits and floats of 32 and 64, any number of channels.

The standard library's `wave` reads no floats, and before Python 3.12 nothing of the extensible kind that recorders
write for 24 bits. Format: Microsoft/IBM "Multimedia Programming Interface and Data Specifications 1.0", and
`WAVEFORMATEXTENSIBLE`.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from ..errors import RequestError

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# Streams of unknown length are written with a size of all ones (or zero for the data): read to the end of the file.
_UNKNOWN = 0xFFFFFFFF


def read_wav(path: str | Path) -> tuple[np.ndarray, int]:
    """The samples of a WAV file.

    Returns:
        float32 of shape (channels, samples), PCM scaled to [-1, 1), and the sampling rate in Hz.

    Raises:
        RequestError: the file cannot be read, or is no WAV of a kind that is known here.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}.") from error
    return parse_wav(data, str(path))


def parse_wav(data: bytes, name: str = "The sound") -> tuple[np.ndarray, int]:
    """`read_wav` of a file's bytes; `name` is what errors call it."""
    if data[:4] not in (b"RIFF", b"RF64") or data[8:12] != b"WAVE":
        raise RequestError(f"{name} is not a WAV file. Remedy: convert it, as with: ffmpeg -i sound.mp3 sound.wav")
    layout: tuple[int, int, int, int] | None = None
    position = 12
    while position + 8 <= len(data):
        kind, size = data[position : position + 4], int(struct.unpack_from("<I", data, position + 4)[0])
        body = position + 8
        if kind == b"fmt ":
            layout = _layout(data[body : body + size], name)
        elif kind == b"data":
            if layout is None:
                break
            end = len(data) if size in (0, _UNKNOWN) else min(body + size, len(data))
            return _samples(data[body:end], *layout[:3], name), layout[3]
        position = body + size + size % 2
    raise RequestError(f"{name} is a WAV file without {'a sound' if layout else 'a format'} in it: it is damaged.")


def _layout(chunk: bytes, name: str) -> tuple[int, int, int, int]:
    """Kind of numbers, channels, bytes a sample, and rate, of a format chunk."""
    if len(chunk) < 16:
        raise RequestError(f"{name} is damaged: its format chunk has {len(chunk)} bytes.")
    kind, channels, rate, _, block, _ = struct.unpack_from("<HHIIHH", chunk)
    if kind == _EXTENSIBLE and len(chunk) >= 26:
        (kind,) = struct.unpack_from("<H", chunk, 24)  # the first field of the GUID
    if channels < 1 or rate < 1 or block % channels:
        raise RequestError(f"{name} is damaged: {channels} channels at {rate} Hz in blocks of {block} bytes.")
    return kind, channels, block // channels, rate


def _samples(data: bytes, kind: int, channels: int, width: int, name: str) -> np.ndarray:
    data = data[: len(data) // (channels * width) * channels * width]
    if kind == _FLOAT and width in (4, 8):
        flat = np.frombuffer(data, f"<f{width}").astype(np.float32)
    elif kind == _PCM and width == 1:  # the only unsigned one
        flat = (np.frombuffer(data, np.uint8).astype(np.float32) - 128.0) / 128.0
    elif kind == _PCM and width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        flat = (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    elif kind == _PCM and width in (2, 4):
        flat = (np.frombuffer(data, f"<i{width}") / 2.0 ** (8 * width - 1)).astype(np.float32)
    else:
        raise RequestError(
            f"{name} holds a WAV of kind {kind} with {8 * width} bits; PCM and floats are read. "
            "Remedy: ffmpeg -i sound.wav -c:a pcm_s16le converted.wav"
        )
    return np.ascontiguousarray(flat.reshape(-1, channels).T)


def write_wav(path: str | Path, samples: np.ndarray, rate: int) -> None:
    """Write float samples in [-1, 1] of shape (samples,) or (channels, samples) as 16-bit PCM."""
    Path(path).write_bytes(format_wav(samples, rate))


def format_wav(samples: np.ndarray, rate: int) -> bytes:
    """What `write_wav` writes."""
    rows = np.atleast_2d(samples)
    whole = np.clip(np.rint(rows * 32768.0), -32768, 32767).astype("<i2")
    data = np.ascontiguousarray(whole.T).tobytes()
    channels = len(rows)
    layout = struct.pack("<HHIIHH", _PCM, channels, rate, rate * channels * 2, channels * 2, 16)
    content = b"WAVE" + b"fmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", len(data))
    return b"RIFF" + struct.pack("<I", len(content) + len(data)) + content + data
