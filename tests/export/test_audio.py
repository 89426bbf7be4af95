"""Models of sound through the export: every format is verified, and the bundle gives what Transformers gives."""

import json

import pytest
import transformers
from palmtop.export import export_checkpoint
from palmtop.export.cli import main
from palmtop.export.inputs import sounds
from palmtop.runtime import load
from palmtop.runtime.audio import write_wav
from palmtop.runtime.bundle import Bundle
from palmtop.runtime.errors import DamagedError, RequestError
from palmtop.runtime.results import to_plain

from ..support.tiny_audio import tiny_audio_checkpoint

CTC = "automatic-speech-recognition"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    source = tiny_audio_checkpoint(tmp_path_factory.mktemp("ctc"), "wav2vec2", CTC, masked=True, num_hidden_layers=1)
    bundle = tmp_path_factory.mktemp("out") / "ctc.bundle"
    return source, export_checkpoint(source, bundle, to=("onnx", "coreml"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "speech.wav"
    write_wav(path, sounds.speech(0.9, 16000, 77).samples, 16000)
    return path


def test_the_task_is_inferred_and_every_format_is_verified(exported):
    _, result = exported
    assert result.manifest.task == CTC
    assert [entry.status for entry in result.report.artifacts] == ["passed", "passed"]
    assert {case.media for case in Bundle.open(result.path).golden()} >= {("audio", "golden/speech.wav")}


@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_a_file_is_transcribed_as_transformers_does(exported, file, target):
    source, result = exported
    wave = load(result.path, target=target, threads=1).processor.sound(file)
    wanted = transformers.pipeline(CTC, model=str(source), device="cpu", dtype="float32")(wave.samples)
    assert to_plain(load(result.path, target=target, threads=1)(file)) == wanted


def test_the_command_line_runs_and_verifies_sounds(exported, file, capsys):
    _, result = exported
    assert main(["verify", str(result.path), "--target", "onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    assert main(["run", str(result.path), str(file), "--target", "onnx"]) == 0
    assert capsys.readouterr().out.strip() == load(result.path, threads=1)(file).text
    assert main(["run", str(result.path), str(file), "--timestamps", "--target", "onnx"]) == 0
    assert "-" in capsys.readouterr().out.splitlines()[0]
    assert main(["run", str(result.path), str(file), "--language", "en"]) == RequestError.exit_code


def test_a_golden_sound_that_was_altered_is_damage(exported):
    _, result = exported
    path = result.path / "golden" / "tone.wav"
    before = path.read_bytes()
    try:
        path.write_bytes(before[:-2] + b"\x01\x01")
        with pytest.raises(DamagedError, match=r"tone\.wav"):
            Bundle.open(result.path)
    finally:
        path.write_bytes(before)


def test_a_checkpoint_without_a_feature_extractor_is_refused_with_what_to_do(tmp_path):
    source = tiny_audio_checkpoint(tmp_path, "wav2vec2", "audio-classification", num_hidden_layers=1)
    (source / "preprocessor_config.json").unlink()
    with pytest.raises(RequestError, match=r"preprocessor_config\.json"):
        export_checkpoint(source, tmp_path / "out.bundle", to=("onnx",), task="audio-classification")
