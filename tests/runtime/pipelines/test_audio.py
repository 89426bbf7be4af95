"""Pipelines of sound give what Transformers gives for the same checkpoint and sound."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from palmtop.export.inputs import sounds
from palmtop.export.speech import ctc_vocabulary
from palmtop.runtime.audio import Sound, write_wav
from palmtop.runtime.audio.ctc import Vocabulary
from palmtop.runtime.errors import DamagedError, RequestError
from palmtop.runtime.manifest import Dim
from palmtop.runtime.results import to_plain

from ...support.tiny_audio import AUTO_CLASSES, VOCABULARY, tiny_audio_checkpoint, write_vocabulary
from ...support.torch_sounds import sound_pipeline
from .common import assert_same

SPEECH = tuple(sounds.speech(seconds, 16000, seed) for seed, seconds in enumerate((0.4, 0.7, 0.25)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = {}

    def make(task, model_type="wav2vec2", **settings):
        key = repr((task, model_type, sorted(settings.items())))
        if key not in made:
            made[key] = tiny_audio_checkpoint(tmp_path_factory.mktemp("audio"), model_type, task, **settings)
        return made[key]

    return make


def theirs(task, folder, **options):
    return transformers.pipeline(task, model=str(folder), device="cpu", dtype="float32", **options)


@pytest.mark.parametrize("model_type", ["wav2vec2", "audio-spectrogram-transformer"])
@pytest.mark.parametrize("kind", [None, "multi_label_classification", "regression"])
def test_classes_of_sounds(folder, model_type, kind):
    source = folder("audio-classification", model_type, problem_type=kind)
    ours, other = sound_pipeline(source, "audio-classification"), theirs("audio-classification", source)
    for sound in SPEECH:
        assert_same(ours(sound), other(sound.samples))
    assert_same(ours(SPEECH[0], top_k=2), other(SPEECH[0].samples, top_k=2))
    assert_same(ours(list(SPEECH), function_to_apply="none"), [
        other(sound.samples, function_to_apply="none") for sound in SPEECH
    ])  # fmt: skip


def test_every_form_of_a_sound_is_the_same_sound(folder, tmp_path):
    pipe = sound_pipeline(folder("audio-classification"), "audio-classification")
    wave = np.round(SPEECH[0].samples * 32768) / 32768
    write_wav(tmp_path / "a.wav", np.stack([wave, wave]), 16000)
    path = tmp_path / "a.wav"
    wanted = pipe(Sound(wave.astype(np.float32), 16000))
    for form in (str(path), path, path.read_bytes(), wave, {"array": wave, "sampling_rate": 16000}):
        assert pipe(form) == wanted
    assert pipe([str(path), wave]) == [wanted, wanted]


@pytest.mark.parametrize("wrong", [3, ["a.wav", 3], None])
def test_what_is_no_sound_is_refused(folder, wrong):
    pipe = sound_pipeline(folder("audio-classification"), "audio-classification")
    with pytest.raises(RequestError, match="Expected a sound"):
        pipe(wrong)


@pytest.mark.parametrize("masked", [False, True])
def test_speech_is_transcribed_with_times(folder, masked):
    task = "automatic-speech-recognition"
    source = folder(task, masked=masked)
    ours, other = sound_pipeline(source, task), theirs(task, source)
    for sound in SPEECH:
        assert to_plain(ours(sound)) == other(sound.samples)
        for unit in ("char", "word"):
            wanted = other(sound.samples, return_timestamps=unit)
            made = ours(sound, return_timestamps=unit)
            assert made.text == wanted["text"]
            assert [chunk.text for chunk in made.chunks] == [chunk["text"] for chunk in wanted["chunks"]]
            times = [chunk.timestamp for chunk in made.chunks]
            np.testing.assert_allclose(times, [chunk["timestamp"] for chunk in wanted["chunks"]], rtol=1e-12)


def test_long_speech_is_heard_in_chunks(folder):
    task = "automatic-speech-recognition"
    source = folder(task)
    ours, other = sound_pipeline(source, task), theirs(task, source)
    long = sounds.speech(3.3, 16000, 9)
    for options in ({"chunk_length_s": 1.0}, {"chunk_length_s": 0.5, "stride_length_s": (0.1, 0.05)}):
        assert to_plain(ours(long, **options)) == other(long.samples, **options)
    with pytest.raises(RequestError, match="no longer than their strides"):
        ours(long, chunk_length_s=0.2, stride_length_s=0.1)


def test_an_artifact_of_limited_length_hears_long_speech_in_chunks(folder):
    task = "automatic-speech-recognition"
    source = folder(task)
    ours, other = sound_pipeline(source, task, Dim(symbol="sequence", min=400, max=16000)), theirs(task, source)
    long = sounds.speech(3.3, 16000, 9)
    assert to_plain(ours(long)) == other(long.samples, chunk_length_s=1.0)
    assert max(shape[1] for shape in ours.session.runner.shapes) == 16000


def test_padding_says_nothing(folder):
    """With a mask a sound in an artifact of a constant length, or in a batch, is heard as it is alone."""
    task = "automatic-speech-recognition"
    source = folder(task, masked=True)
    alone = sound_pipeline(source, task)
    padded = sound_pipeline(source, task, Dim(size=12000))
    for sound in SPEECH:
        assert padded(sound, return_timestamps="char") == alone(sound, return_timestamps="char")


def test_sounds_of_other_lengths_only_share_a_batch_where_there_is_a_mask(folder):
    task = "audio-classification"
    plain, masked = (sound_pipeline(folder(task, masked=flag), task) for flag in (False, True))
    for pipe, batches in ((plain, 3), (masked, 1)):
        wanted = [pipe(sound) for sound in SPEECH]
        pipe.session.runner.shapes.clear()
        together = pipe(list(SPEECH), batch_size=4)
        assert len(pipe.session.runner.shapes) == batches
        for one, other in zip(together, wanted, strict=True):
            assert_same(one, to_plain(other))


def test_frames_of_classes_become_stretches(folder):
    task = "audio-frame-classification"
    source = folder(task)
    pipe = sound_pipeline(source, task)
    model = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(source).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(source)
    inputs = extractor(SPEECH[0].samples, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        wanted = torch.sigmoid(model(**inputs).logits[0]).numpy()
    frames = pipe(SPEECH[0], aggregate=False, function_to_apply="sigmoid")
    np.testing.assert_allclose(frames, wanted, atol=1e-5)
    segments = pipe(SPEECH[0], function_to_apply="sigmoid", threshold=0.6)
    assert segments
    said = np.zeros_like(frames, bool)
    for segment in segments:
        index = ("yes", "no", "stop", "go").index(segment.label)
        start, end = round(segment.start * 800), round(segment.end * 800)  # a frame each 20 samples
        said[start:end, index] = True
        assert segment.score == pytest.approx(frames[start:end, index].mean(), abs=1e-6)
    np.testing.assert_array_equal(said, frames > 0.6)


def test_a_voice_as_a_vector(folder):
    task = "audio-xvector"
    source = folder(task)
    pipe = sound_pipeline(source, task)
    model = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(source).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(source)
    inputs = extractor(SPEECH[0].samples, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        wanted = model(**inputs).embeddings[0].numpy()
    np.testing.assert_allclose(pipe(SPEECH[0], normalize=False), wanted, atol=1e-4)
    vectors = pipe(list(SPEECH))
    assert vectors.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert pipe.similarity(SPEECH[0], SPEECH[1]) == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-6)


def test_the_states_of_a_sound(folder):
    source = folder("feature-extraction")
    pipe = sound_pipeline(source, "feature-extraction")
    states = pipe(SPEECH[0])
    model = transformers.AutoModel.from_pretrained(source).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(source)
    with torch.no_grad():
        inputs = extractor(SPEECH[0].samples, sampling_rate=16000, return_tensors="pt")
        wanted = model(**inputs).last_hidden_state[0].numpy()
    np.testing.assert_allclose(states, wanted, atol=1e-4)


def test_a_bundle_that_does_not_say_how_sounds_are_prepared_is_damaged(folder):
    pipe = sound_pipeline(folder("audio-classification"), "audio-classification")
    pipe.manifest.preprocess.clear()
    with pytest.raises(DamagedError, match=r"preprocess\.audio"):
        type(pipe)(pipe.manifest, None, pipe.session)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": True},
        {"word_delimiter_token": "'", "replace_word_delimiter_char": "_"},
        {"pad_token": "<s>", "unk_token": "NG"},
    ],
)
def test_text_of_frames_is_the_tokenizers_own(tmp_path, settings):
    """Random frames, with runs, blanks, words, special tokens, tokens of two letters and ids beyond the vocabulary."""
    tokenizer = write_vocabulary(tmp_path, **settings)
    rows = len(VOCABULARY) + 2
    source = SimpleNamespace(folder=tmp_path, config=SimpleNamespace(vocab_size=rows), trust_remote_code=False)
    vocabulary = Vocabulary.from_json(ctc_vocabulary(source)["ctc"])
    random = np.random.default_rng(0)
    for _ in range(50):
        ids = np.repeat(random.choice([0, 4, *range(rows)], 40), random.integers(1, 4, 40))
        characters = vocabulary.characters(ids)
        wanted = tokenizer.decode(ids, output_char_offsets=True, output_word_offsets=True)
        assert vocabulary.text(characters) == wanted.text
        assert [(c.text, c.start, c.end) for c in characters] == [tuple(o.values()) for o in wanted.char_offsets]
        words = vocabulary.words(characters)
        assert [(w.text, w.start, w.end) for w in words] == [tuple(o.values()) for o in wanted.word_offsets]
    blank = vocabulary.tokens.index(vocabulary.blank)
    assert vocabulary.text(vocabulary.characters(np.full(5, blank))) == ""
