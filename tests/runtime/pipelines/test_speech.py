"""Whisper from its checkpoint through every format to text, beside Transformers: times, languages, tasks, windows."""

import pytest
import transformers
from palmtop.export import export_checkpoint
from palmtop.export.inputs import sounds
from palmtop.runtime import load
from palmtop.runtime.errors import RequestError
from palmtop.runtime.results import to_plain

from ...support.tiny_whisper import tiny_whisper

TASK = "automatic-speech-recognition"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The checkpoint, and its bundle in all formats."""
    source, bundle = tiny_whisper(tmp_path_factory.mktemp("whisper")), tmp_path_factory.mktemp("out") / "whisper.bundle"
    export_checkpoint(source, bundle)
    return source, bundle


@pytest.fixture(scope="module", params=["onnx", "coreml", "executorch"])
def both(exported, request):
    source, bundle = exported
    pipe = transformers.pipeline(TASK, model=str(source), device="cpu", dtype="float32")

    def greedy(sound, beams=1, **options):
        told = {"num_beams": beams, **options.pop("generate_kwargs", {})}
        return pipe(sound, generate_kwargs=told, **options)

    return load(bundle, target=request.param, threads=1), greedy


def plain(result):
    """As Transformers writes it: times as pairs."""
    made = to_plain(result)
    for chunk in made.get("chunks", []):
        chunk["timestamp"] = tuple(chunk["timestamp"])
    return made


def theirs(result):
    chunks = [{"text": chunk["text"], "timestamp": chunk["timestamp"]} for chunk in result.get("chunks", [])]
    return {"text": result["text"], **({"chunks": chunks} if "chunks" in result else {})}


@pytest.mark.parametrize("seed", [0, 1])
def test_speech_becomes_text_and_segments(both, seed):
    ours, other = both
    sound = sounds.speech(0.8, 16000, seed)
    assert plain(ours(sound)) == theirs(other(sound.samples))
    assert plain(ours(sound, return_timestamps=True)) == theirs(other(sound.samples, return_timestamps=True))


def test_beams_are_an_option(both):
    ours, other = both
    sound = sounds.speech(0.8, 16000, 2)
    assert plain(ours(sound, num_beams=3)) == theirs(other(sound.samples, beams=3))


def test_language_and_task_are_told_by_tokens(both):
    ours, other = both
    sound = sounds.speech(0.7, 16000, 3)
    for options in ({"language": "de", "task": "translate"}, {"language": "en"}, {"task": "transcribe"}):
        assert plain(ours(sound, **options)) == theirs(other(sound.samples, generate_kwargs=options))
    with pytest.raises(RequestError, match="Unknown language 'fr'"):
        ours(sound, language="fr")
    with pytest.raises(RequestError, match="Unknown task 'sing'"):
        ours(sound, task="sing")
    with pytest.raises(RequestError, match="times of words"):
        ours(sound, return_timestamps="word")


def test_long_speech_is_heard_window_by_window(both):
    ours, other = both
    sound = sounds.speech(2.7, 16000, 9)
    wanted = other(sound.samples, return_timestamps=True)
    made = ours(sound, return_timestamps=True)
    assert plain(made) == theirs(wanted)
    assert len(made.chunks) > 2
    assert plain(ours(sound)) == {"text": wanted["text"]}
