"""Whatever form a sound comes in, the model hears one channel at its own rate."""

import numpy as np
import pytest
from palmtop.runtime.audio import Sound, as_sound, write_wav
from palmtop.runtime.audio.resample import resample
from palmtop.runtime.errors import RequestError
from scipy.signal import resample_poly


def _sine(hertz, rate, seconds=0.5):
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_a_tone_at_another_rate_is_that_tone(rate):
    made = resample(_sine(1000, rate), rate, 16000)
    wanted = _sine(1000, 16000)
    assert abs(len(made) - len(wanted)) <= 1
    inner = slice(400, 7000)  # the ends hear the silence around the sound
    np.testing.assert_allclose(made[inner], wanted[inner], atol=2e-6)


def test_what_the_lower_rate_cannot_hold_is_gone():
    made = resample(_sine(9500, 44100), 44100, 16000)
    assert np.abs(made[400:-400]).max() < 1e-5


def test_resampling_is_near_another_implementation():
    random = np.random.default_rng(0)
    slow = np.convolve(random.standard_normal(22050), np.hanning(64) / 32, "same").astype(np.float32)
    made, other = resample(slow, 44100, 16000), resample_poly(slow, 160, 441, window=("kaiser", 14.0))
    assert len(made) == len(other)
    np.testing.assert_allclose(made[200:-200], other[200:-200], atol=5e-3)


def test_a_constant_stays_that_constant():
    made = resample(np.full(4000, 0.25, np.float32), 8000, 16001)
    np.testing.assert_allclose(made[1000:-1000], 0.25, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 50])
def test_very_short_sounds_keep_their_length_in_time(count):
    assert len(resample(np.ones(count, np.float32), 8000, 16000)) == 2 * count


def test_a_stereo_file_its_bytes_and_its_arrays_are_one_sound(tmp_path):
    rows = np.stack([_sine(300, 16000), _sine(500, 16000)]) * 0.5
    path = tmp_path / "a.wav"
    write_wav(path, rows, 16000)
    wanted = rows.mean(axis=0)
    forms = [str(path), path, path.read_bytes(), rows, {"raw": rows, "sampling_rate": 16000}, Sound(wanted, 16000)]
    for form in forms:
        sound = as_sound(form, 16000)
        assert sound.rate == 16000
        np.testing.assert_allclose(sound.samples, wanted, atol=5e-5)


def test_a_mapping_states_its_rate():
    assert as_sound({"array": _sine(300, 8000), "sampling_rate": 8000}, 16000).samples.size == 8000


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (3, "Expected a sound"),
        (np.zeros((4000, 2), np.float32), "channels come first"),
        (np.zeros(0, np.float32), "shape"),
        (np.zeros(8, np.int16), "scale them"),
        (np.full(8, np.nan, np.float32), "not finite"),
        ({"array": np.zeros(8)}, "sampling_rate"),
    ],
)
def test_what_is_no_sound_is_refused(value, says):
    with pytest.raises(RequestError, match=says):
        as_sound(value, 16000)
