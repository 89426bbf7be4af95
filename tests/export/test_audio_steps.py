"""A checkpoint's feature extractor becomes data, and the runtime makes the same features of it without torch."""

import numpy as np
import pytest
import transformers
from palmtop.export.inputs import sounds
from palmtop.export.inputs.audio_steps import audio_preprocess, extractor_features, prove_features
from palmtop.runtime.audio import AudioProcessor, Sound, as_sound, write_wav
from palmtop.runtime.errors import DamagedError, RequestError, UnsupportedError
from palmtop.runtime.manifest import Dim

NAMES = ("input_values", "input_features", "attention_mask")
EXTRACTORS = {
    "wav2vec2": lambda: transformers.Wav2Vec2FeatureExtractor(),
    "wav2vec2-layer": lambda: transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
    "moonshine": lambda: transformers.Wav2Vec2FeatureExtractor(do_normalize=False),
    "whisper": lambda: transformers.WhisperFeatureExtractor(),
    "whisper-large-v3": lambda: transformers.WhisperFeatureExtractor(feature_size=128),
    "whisper-short": lambda: transformers.WhisperFeatureExtractor(chunk_length=5, hop_length=80, n_fft=200),
    "ast": lambda: transformers.ASTFeatureExtractor(num_mel_bins=64, max_length=200, mean=-3.0, std=2.0),
    "ast-plain": lambda: transformers.ASTFeatureExtractor(do_normalize=False),
    "speech-to-text": lambda: transformers.Speech2TextFeatureExtractor(),
    "speech-to-text-means": lambda: transformers.Speech2TextFeatureExtractor(normalize_vars=False, num_mel_bins=40),
    "speech-to-text-raw": lambda: transformers.Speech2TextFeatureExtractor(do_ceptral_normalize=False),
    "seamless": lambda: transformers.SeamlessM4TFeatureExtractor(),
}


@pytest.fixture(params=EXTRACTORS)
def extractor(request):
    return EXTRACTORS[request.param]()


def test_features_equal_the_extractors_own_on_files(extractor, tmp_path):
    """Speech and noise, stereo and mono, at 8, 16 and 44.1 kHz, short, and longer than some models take."""
    data = audio_preprocess(extractor, NAMES)
    processor = AudioProcessor(data)
    left = sounds.speech(1.7, 44100, 11)
    files = {
        "stereo-44k": (np.stack([left.samples, sounds.noise(1.7, 44100, 12).samples]), 44100),
        "telephone": (sounds.speech(0.8, 8000, 13).samples, 8000),
        "short": (sounds.speech(0.05, 16000, 14).samples, 16000),
        "long": (sounds.speech(11.0, 16000, 15).samples, 16000),
        "noise": (sounds.noise(1.0, 16000, 16, level=0.3).samples, 16000),
    }
    for name, (samples, rate) in files.items():
        write_wav(tmp_path / f"{name}.wav", samples, rate)
        sound = as_sound(tmp_path / f"{name}.wav", processor.rate)
        ours, theirs = processor.features(sound), _exact(extractor, data, sound)
        assert ours.shape == theirs.shape, name
        scale = np.sqrt(np.mean(theirs.astype(np.float64) ** 2))
        # The logarithm of a band's power that is only rounding noise is divided by its tiny deviation: hence 2e-5.
        assert np.abs(ours - theirs).max() / scale < 2e-5, name
    prove_features(extractor, data, sounds.probes(processor.rate, 30.0))


def _exact(extractor, data, sound):
    """Whisper's with numpy: with torch it computes in float32, which is some 4e-5 from that."""
    if not isinstance(extractor, transformers.WhisperFeatureExtractor):
        return extractor_features(extractor, data, sound)
    length = extractor.n_samples
    samples = np.pad(sound.samples[:length], (0, max(0, length - sound.samples.size)))
    return extractor._np_extract_fbank_features(samples[None], "cpu")[0]


def test_silence_gives_finite_features(extractor):
    processor = AudioProcessor(audio_preprocess(extractor, NAMES))
    assert np.isfinite(processor.features(Sound(np.zeros(8000, np.float32), 16000))).all()


def test_a_mask_is_made_only_where_the_extractor_and_the_model_have_one():
    masked, plain = EXTRACTORS["wav2vec2-layer"](), EXTRACTORS["wav2vec2"]()
    assert audio_preprocess(masked, NAMES)["mask"] == "attention_mask"
    assert audio_preprocess(masked, ("input_values",))["mask"] is None
    assert audio_preprocess(plain, NAMES)["mask"] is None


@pytest.mark.parametrize("kind", ["wav2vec2-layer", "speech-to-text"])
def test_a_padded_batch_is_the_extractors_own(kind):
    extractor = EXTRACTORS[kind]()
    data = audio_preprocess(extractor, NAMES)
    processor = AudioProcessor(data)
    made = [sounds.speech(seconds, 16000, 20) for seconds in (0.7, 1.3, 0.4)]
    theirs = extractor([s.samples for s in made], sampling_rate=16000, padding=True, return_tensors="np")
    ours = processor.batch([processor.features(sound) for sound in made])
    assert list(ours) == [data["input"], "attention_mask"]
    np.testing.assert_array_equal(ours["attention_mask"], theirs["attention_mask"])
    np.testing.assert_allclose(ours[data["input"]], theirs[data["input"]], atol=2e-5)


def test_a_batch_is_padded_to_what_the_axis_takes_and_refused_beyond():
    processor = AudioProcessor(audio_preprocess(EXTRACTORS["wav2vec2-layer"](), NAMES))
    features = [np.ones(300, np.float32), np.ones(500, np.float32)]
    inputs = processor.batch(features, Dim(symbol="samples", values=(400, 800)))
    assert inputs["input_values"].shape == (2, 800)
    assert inputs["attention_mask"].sum(axis=1).tolist() == [300, 500]
    with pytest.raises(RequestError, match=r"0\.03 s, the artifact takes 0\.03 s"):
        processor.batch(features, Dim(size=400))


def test_an_extractor_with_other_settings_than_stated_is_refused():
    extractor = EXTRACTORS["ast"]()
    data = audio_preprocess(extractor, NAMES)
    extractor.mean = 0.0
    with pytest.raises(UnsupportedError, match="apart on average"):
        prove_features(extractor, data, sounds.probes(16000, 2.0))


def test_random_noise_and_unknown_extractors_are_refused():
    with pytest.raises(UnsupportedError, match="dither"):
        audio_preprocess(transformers.Speech2TextFeatureExtractor(dither=1.0), NAMES)
    with pytest.raises(UnsupportedError, match="EncodecFeatureExtractor"):
        audio_preprocess(transformers.EncodecFeatureExtractor(), NAMES)


@pytest.mark.parametrize("rate", ["fast", None])
def test_a_setting_that_is_no_number_is_damage(rate):
    with pytest.raises(DamagedError, match=r"Wav2Vec2FeatureExtractor in .* make no sense"):
        audio_preprocess(transformers.Wav2Vec2FeatureExtractor(sampling_rate=rate), NAMES)
