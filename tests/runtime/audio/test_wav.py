"""WAV files of every common kind are read, and damaged ones are refused in words."""

import struct

import numpy as np
import pytest
from palmtop.runtime.audio import read_wav, write_wav
from palmtop.runtime.errors import RequestError
from scipy.io import wavfile


@pytest.fixture
def wave():
    time = np.arange(800) / 16000
    return np.sin(2 * np.pi * 440 * time) * 0.5


@pytest.mark.parametrize(
    ("dtype", "scale", "tolerance"),
    [("int16", 2**15, 1e-4), ("int32", 2**31, 1e-6), ("float32", 1, 1e-7), ("float64", 1, 1e-7)],
)
def test_signed_pcm_and_floats_are_read_as_scipy_writes_them(tmp_path, wave, dtype, scale, tolerance):
    path = tmp_path / "a.wav"
    wavfile.write(path, 22050, (wave * scale).astype(dtype))
    samples, rate = read_wav(path)
    assert rate == 22050
    assert samples.shape == (1, 800)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples[0], wave, atol=tolerance)


def test_eight_bits_are_unsigned(tmp_path, wave):
    path = tmp_path / "a.wav"
    wavfile.write(path, 8000, (wave * 128 + 128).astype(np.uint8))
    samples, _ = read_wav(path)
    np.testing.assert_allclose(samples[0], wave, atol=1 / 128)


@pytest.mark.parametrize("extensible", [False, True])
def test_twenty_four_bits_plain_and_extensible(tmp_path, wave, extensible):
    whole = (wave * 2**23).astype("<i4")
    data = whole.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    layout = struct.pack("<HHIIHH", 0xFFFE if extensible else 1, 1, 48000, 144000, 3, 24)
    if extensible:
        layout += struct.pack("<HHIH", 22, 24, 4, 1) + bytes(14)
    note = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # an odd chunk is followed by a byte of padding
    body = b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + note + b"data" + struct.pack("<I", len(data)) + data
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    samples, rate = read_wav(path)
    assert rate == 48000
    np.testing.assert_allclose(samples[0], wave, atol=1e-6)


def test_channels_are_kept_apart(tmp_path, wave):
    path = tmp_path / "a.wav"
    write_wav(path, np.stack([wave, -wave / 2]), 44100)
    samples, rate = read_wav(path)
    assert rate == 44100
    np.testing.assert_allclose(samples, [wave, -wave / 2], atol=1e-4)


def test_written_files_are_read_by_scipy(tmp_path, wave):
    path = tmp_path / "a.wav"
    write_wav(path, wave, 16000)
    rate, samples = wavfile.read(path)
    assert rate == 16000
    np.testing.assert_allclose(samples / 32768, wave, atol=1e-4)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"ID3\x04" + bytes(40), "not a WAV file"),
        (b"RIFF\0\0\0\0WAVE", "without a format"),
        (b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 1, 0, 8000, 8000, 1, 8), "damaged"),
        (
            b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 85, 1, 8000, 8000, 1, 8) + b"data\4\0\0\0abcd",
            "kind 85",
        ),
    ],
)
def test_what_is_no_sound_is_refused(tmp_path, content, says):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=says):
        read_wav(path)


def test_a_missing_file_is_a_wrong_request(tmp_path):
    with pytest.raises(RequestError, match="cannot be read"):
        read_wav(tmp_path / "none.wav")
