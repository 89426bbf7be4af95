"""The command line: exit codes, one-screen messages, and stdout kept for results."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from palmtop.export import api
from palmtop.export.cli import VERBS, _parser
from palmtop.export.cli.console import size
from palmtop.runtime.errors import DamagedError, ParityError, RequestError, UnsupportedError

from .conftest import edit_json


def assert_refused(ran, code: int, *says: str) -> None:
    """The exit code, and on stderr alone a message that fits a screen and has all of `says` in it."""
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) <= 24
    for words in says:
        assert words in ran.err


# --- what every verb has --------------------------------------------------------------------------------------------


def test_the_help_lists_the_verbs_and_the_exit_codes(palmtop):
    ran = palmtop("--help")
    assert ran.code == 0
    for verb in VERBS:
        assert re.search(rf"^ +{verb} +\w", ran.out, re.MULTILINE)
    for code in range(5):
        assert re.search(rf"^ +{code}  \w", ran.out, re.MULTILINE)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_explains_every_option(palmtop, verb):
    ran = palmtop(verb, "--help")
    assert ran.code == 0
    (verbs,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    for action in verbs.choices[verb]._actions:
        for name in action.option_strings or [action.metavar]:
            assert name in ran.out
        if action.option_strings:
            assert action.help, name


def test_the_version(palmtop):
    ran = palmtop("--version")
    assert ran.code == 0
    assert re.fullmatch(r"palmtop \d+\.\d+\.\d+\n", ran.out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "VERB"),
        (["exprot"], "exprot"),
        (["export"], "SOURCE"),
        (["export", "x"], "--output"),
        (["export", "x", "-o", "y", "--quantise", "fp16"], "--quantise"),
        (["export", "x", "-o", "y", "--quant", "fp16"], "--quant"),
        (["export", "x", "-o", "y", "--lengths", "32;64"], "32;64"),
        (["export", "x", "-o", "y", "--max-length", "many"], "many"),
        (["export", "x", "-o", "y", "--static", "--dynamic"], "not allowed with"),
        (["verify"], "BUNDLE"),
        (["run", "x", "--top-k", "three"], "three"),
        (["inspect", "x", "y"], "y"),
        (["doctor", "--fix"], "--fix"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_wrong_usage(palmtop, arguments, says, as_json):
    ran = palmtop(*arguments, *(["--json"] if as_json else []))
    if as_json and arguments:
        assert (ran.code, ran.err) == (2, "")
        assert says in ran.json["error"]["message"]
    elif not as_json:
        assert_refused(ran, 2, says, "--help")


# --- errors of every kind -------------------------------------------------------------------------------------------

KINDS = [
    (ParityError("It differs."), 1, "It differs."),
    (RequestError("No such thing."), 2, "No such thing."),
    (DamagedError("It is cut."), 3, "It is cut."),
    (UnsupportedError("No such operation."), 4, "No such operation."),
    (OSError(errno.ENOSPC, "No space left on device", "/x"), 2, "No space left on device: /x"),
    (MemoryError(), 2, "--max-length"),
    (KeyboardInterrupt(), 130, "Interrupted"),
    (ZeroDivisionError("division by zero"), 70, "--debug"),
]


@pytest.fixture(params=KINDS, ids=lambda kind: type(kind[0]).__name__)
def failing(request, monkeypatch):
    """An export that fails in some way: the error, its exit code, and what the message says."""

    def fail(*_, **__):
        raise request.param[0]

    monkeypatch.setattr(api, "export_checkpoint", fail)
    return request.param


def test_an_error_is_a_message_and_its_exit_code(palmtop, failing):
    assert_refused(palmtop("export", "x", "-o", "y"), failing[1], failing[2])


def test_an_error_is_one_json_document(palmtop, failing):
    ran = palmtop("export", "x", "-o", "y", "--json")
    assert ran.err == ""
    assert ran.json["error"]["kind"] == type(failing[0]).__name__
    assert (ran.code, ran.json["error"]["exit_code"]) == (failing[1], failing[1])
    assert failing[2] in ran.json["error"]["message"]


def test_debug_adds_the_traceback_and_keeps_the_exit_code(palmtop, failing):
    ran = palmtop("export", "x", "-o", "y", "--debug")
    assert ran.code == failing[1]
    assert ran.out == ""
    assert "Traceback (most recent call last)" in ran.err
    assert "in fail" in ran.err
    assert failing[2] in ran.err


# --- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--to", "onnx,tflite"], ("tflite", "onnx, coreml, executorch")),
        (["--to", ","], ("Known targets",)),
        (["--quantize", "int3"], ("int3", "fp16")),
        (["--task", "text-clasification"], ("text-clasification", "text-classification", "multiple-choice")),
        (["--task", "fill-mask"], ("cannot do fill-mask", "no weights", "BertForSequenceClassification")),
        (["--max-length", "0"], ("Lengths",)),
        (["--max-length", "-5"], ("Lengths",)),
        (["--max-length", "100000"], ("at most", "100000")),
        (["--max-length", "2"], ("leaves no room",)),
        (["--lengths", "2,32"], ("leaves no room", "2")),
        (["--lengths", "16,9999"], ("9999",)),
        (["--lengths", "16", "--max-length", "32"], ("exclude each other",)),
        (["--keep-fp32", "bert.encoder"], ("--keep-fp32", "--quantize fp16")),
        (["--revision", "main"], ("--revision", "folder")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_export_refuses_wrong_requests(palmtop, checkpoint, tmp_path, options, says):
    assert_refused(palmtop("export", checkpoint(), "-o", tmp_path / "x.bundle", *options), 2, *says)
    assert list(tmp_path.iterdir()) == []


def without(name: str):
    return lambda folder: (folder / name).unlink()


def pickled(folder) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def garbled(folder) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 80)


def remote(folder) -> None:
    auto_map = {"AutoConfig": "code.Config"}
    edit_json(folder / "config.json", lambda config: config.update(model_type="odd", auto_map=auto_map))


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (shutil.rmtree, 2, ("No such folder",)),
        (without("config.json"), 2, ("no config.json",)),
        (without("model.safetensors"), 2, ("no weights",)),
        (without("tokenizer.json"), 2, ("no tokenizer", "Remedy")),
        (pickled, 3, ("pytorch_model.bin", "may run code", "Remedy")),
        (garbled, 3, ("weights", "cannot be loaded")),
        (lambda folder: (folder / "config.json").write_text("{"), 3, ("config.json", "cannot be read")),
        (remote, 3, ("code.Config", "--trust-remote-code")),
    ],
    ids=["missing", "no config", "no weights", "no tokenizer", "pickle", "garbled", "bad config", "remote code"],
)
def test_export_refuses_what_is_no_checkpoint(palmtop, copy, tmp_path, damage, code, says):
    folder = copy()
    for name in ("vocab.txt", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    damage(folder)
    assert_refused(palmtop("export", folder, "-o", tmp_path / "x.bundle"), code, *says)
    assert not (tmp_path / "x.bundle").exists()


def test_export_refuses_a_bundle_as_source(palmtop, bundle, tmp_path):
    assert_refused(palmtop("export", bundle, "-o", tmp_path / "x.bundle"), 2, "palmtop bundle", "palmtop verify")


def test_export_refuses_an_existing_destination(palmtop, checkpoint, bundle):
    assert_refused(palmtop("export", checkpoint(), "-o", bundle), 2, str(bundle), "--force")


# Operations that nobody knows, in two modules.
STRANGE = """
import torch
from transformers import BertConfig, BertForSequenceClassification

@torch.library.custom_op("strange::twist", mutates_args=())
def twist(x: torch.Tensor) -> torch.Tensor:
    return x.flip(-1)

@torch.library.custom_op("strange::bend", mutates_args=())
def bend(x: torch.Tensor) -> torch.Tensor:
    return x * 2

twist.register_fake(torch.empty_like)
bend.register_fake(torch.empty_like)

class Bender(torch.nn.Module):
    def forward(self, x):
        return bend(twist(x))

class OddConfig(BertConfig):
    model_type = "odd"

class OddForSequenceClassification(BertForSequenceClassification):
    config_class = OddConfig
    def __init__(self, config):
        super().__init__(config)
        self.bender = Bender()
    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, **kwargs):
        result = super().forward(input_ids, attention_mask, token_type_ids, **kwargs)
        result.logits = twist(self.bender(result.logits))
        return result
"""


def test_operations_that_no_target_takes_are_listed_all_at_once(palmtop, copy, tmp_path, monkeypatch):
    folder = copy()
    (folder / "modeling_odd.py").write_text(STRANGE)
    names = {"AutoConfig": "OddConfig", "AutoModelForSequenceClassification": "OddForSequenceClassification"}
    auto_map = {key: f"modeling_odd.{name}" for key, name in names.items()}
    edit_json(folder / "config.json", lambda config: config.update(model_type="odd", auto_map=auto_map))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    ran = palmtop("export", folder, "-o", tmp_path / "x.bundle", "--trust-remote-code")
    assert_refused(ran, 4, "cannot be expressed")
    assert not (tmp_path / "x.bundle").exists()
    for target in ("onnx", "coreml", "executorch"):
        assert re.search(rf"{target}: strange.twist\S* in bender", ran.err)
        assert re.search(rf"{target}: strange.bend\S* in bender", ran.err)
        assert re.search(rf"{target}: strange.twist\S* in the model itself", ran.err)
    assert ran.err.count("Remedy:") == 9


# --- verify ---------------------------------------------------------------------------------------------------------


def test_verify_passes_a_good_bundle(palmtop, exported):
    ran = palmtop("verify", exported.path)
    assert ran.code == 0
    assert ran.out == ""
    for artifact in exported.manifest.artifacts:
        assert re.search(rf"^{artifact.target} .* passed *$", ran.err, re.MULTILINE)
    assert "golden vectors" in ran.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--target", "tflite"], ("no tflite artifact", "onnx, coreml, executorch")),
        (["--inputs", "x.txt"], ("--inputs needs --reference",)),
        (["--reference", "./nowhere"], ("No such folder", "./nowhere")),
    ],
)
def test_verify_refuses_wrong_requests(palmtop, exported, options, says):
    assert_refused(palmtop("verify", exported.path, *options), 2, *says)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("none.txt", None, "none.txt"),
        ("empty.txt", "\n\n", "holds no text"),
        ("lines.jsonl", '{"text": "a"}\n{"text"', "line 2"),
        ("lines.jsonl", '{"txet": "a"}', "line 1"),
        ("lines.jsonl", "[1, 2]", "line 1"),
    ],
)
def test_verify_refuses_inputs_that_are_none(palmtop, exported, checkpoint, tmp_path, name, text, says):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    ran = palmtop("verify", exported.path, "--reference", checkpoint(), "--inputs", path)
    assert_refused(ran, 2, says)


def test_verify_of_a_target_that_cannot_run_here_is_one_document_and_no_pass(palmtop, exported, monkeypatch):
    from palmtop.runtime.backends import executorch

    backend = executorch.BACKEND
    absent = type(backend)(backend.target, backend.open, lambda: "Install ExecuTorch.", backend.contents)
    monkeypatch.setattr(executorch, "BACKEND", absent)
    ran = palmtop("verify", exported.path, "--target", "executorch", "--json")
    assert ran.code == 2
    assert not ran.json["passed"]
    assert ran.json["artifacts"][0]["status"] == "not executed"
    assert ran.json["artifacts"][0]["reason"] == "Install ExecuTorch."
    ran = palmtop("verify", exported.path)
    assert ran.code == 0
    assert "converted, not executed. Install ExecuTorch." in ran.err


def test_the_command_ends_with_what_was_registered_for_the_exit(tmp_path):
    code = (
        "import atexit, sys\n"
        "from palmtop.export.cli import command\n"
        "atexit.register(lambda: print('left in order'))\n"
        f"sys.argv = ['palmtop', 'inspect', {str(tmp_path / 'nothing')!r}]\n"
        "command()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stdout == "left in order\n"
    assert "No such bundle" in ran.stderr


# --- bundles that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["verify", "run", "inspect", "report"])
def test_a_bundle_that_is_not_there(palmtop, tmp_path, checkpoint, verb):
    assert_refused(palmtop(verb, tmp_path / "nothing"), 2, "No such bundle", "nothing")
    assert_refused(palmtop(verb, tmp_path), 2, "manifest.json")
    assert_refused(palmtop(verb, checkpoint()), 2, "checkpoint", "palmtop export")


@pytest.mark.parametrize("verb", ["verify", "run", "inspect", "report"])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("manifest.json", lambda path: path.write_text("{")),
        ("manifest.json", lambda path: path.write_text("[]")),
        ("manifest.json", lambda path: edit_json(path, lambda data: data.update(task="fill-mask"))),
        ("tokenizer/tokenizer.json", lambda path: path.write_text("{}")),
        ("tokenizer/tokenizer.json", lambda path: path.unlink()),
        ("onnx/model.onnx", lambda path: path.write_bytes(path.read_bytes()[:1000])),
    ],
    ids=["cut", "other", "altered", "vocabulary", "missing", "short"],
)
def test_a_damaged_bundle(palmtop, bundle, verb, name, damage):
    damage(bundle / name)
    assert_refused(palmtop(verb, bundle, *(["hello"] if verb == "run" else [])), 3, name.rpartition("/")[2])


# --- run, inspect, doctor -------------------------------------------------------------------------------------------


def test_run_prints_results_and_nothing_else(palmtop, exported):
    ran = palmtop("run", exported.path, "wake me up", "play a song")
    assert ran.code == 0
    assert ran.err == ""
    lines = ran.out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["wake me up", "play a song"]
    assert re.search(r"(set_alarm|play_music|weather) 0\.\d{3}", lines[0])


def test_run_on_all_targets_agrees(palmtop, exported):
    ran = palmtop("run", exported.path, "wake me up", "--target", "all", "--json")
    results = ran.json["results"]
    assert set(results) == {"onnx", "coreml", "executorch"}
    first = results["onnx"][0]
    for found in results.values():
        assert [entry["label"] for entry in found[0]] == [entry["label"] for entry in first]
        for entry, other in zip(found[0], first, strict=True):
            assert entry["score"] == pytest.approx(other["score"], abs=1e-4)


def test_run_reads_lines_of_stdin(palmtop, exported, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert len(palmtop("run", exported.path).out.splitlines()) == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert_refused(palmtop("run", exported.path), 2, "Nothing to run")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--target", "tflite"], ("tflite", "onnx")),
        (["--context", "x"], ("--context", "text-classification")),
        (["--choice", "x"], ("--choice", "text-classification")),
        (["--aggregate", "first"], ("--aggregate",)),
        (["--top-k", "0"], ("top_k",)),
        (["--threads", "0"], ("--threads", "from 1 on")),
        (["--threads", "-1"], ("--threads", "from 1 on")),
    ],
)
def test_run_refuses_what_means_nothing(palmtop, exported, options, says):
    assert_refused(palmtop("run", exported.path, "hello", *options), 2, *says)


def test_run_refuses_half_a_character(palmtop, exported):
    assert_refused(palmtop("run", exported.path, "x\ud800"), 2, "surrogate")


def test_inspect_shows_artifacts_signatures_and_operations(palmtop, exported):
    found = palmtop("inspect", exported.path, "--json").json
    assert {entry["target"] for entry in found["artifacts"]} == {"onnx", "coreml", "executorch"}
    assert found["size"] == sum(file.size for file in exported.manifest.files)
    for entry in found["artifacts"]:
        assert entry["size"] > 100_000
        assert any(text.startswith("input_ids: int") for text in entry["inputs"])
        assert any(text.startswith("logits: float32") for text in entry["outputs"])
        assert sum(entry["operations"].values()) > 0
    ran = palmtop("inspect", exported.path)
    assert ran.code == 0
    assert "BertForSequenceClassification" in ran.err
    assert "input_ids" in ran.err
    assert "Attention" in ran.err


def test_report_shows_what_was_measured_when_the_bundle_was_made(palmtop, exported, bundle):
    found = palmtop("report", bundle, "--json")
    assert found.code == 0
    assert found.json["parity"] == exported.report.to_json()
    assert found.json["identity"] == exported.manifest.identity
    ran = palmtop("report", bundle)
    assert ran.code == 0
    for entry in exported.report.artifacts:
        assert re.search(rf"^{entry.target} .* {re.escape(entry.measures[0].found())} .* passed", ran.err, re.MULTILINE)
    assert "ONNX Runtime" in ran.err


def test_report_tells_of_a_bundle_without_a_report(palmtop, bundle):
    unlisted = (bundle / "parity.json").read_bytes()
    edit_json(bundle / "parity.json", lambda data: data.pop("artifacts"))
    assert_refused(palmtop("report", bundle), 3, "parity.json")
    (bundle / "parity.json").write_bytes(unlisted)
    assert palmtop("report", bundle).code == 0


def test_inspect_refuses_an_artifact_that_is_none(palmtop, bundle):
    path = bundle / "executorch" / "model.pte"
    path.write_bytes(b"\x00" * path.stat().st_size)
    assert_refused(palmtop("inspect", bundle), 3, "model.pte")


def test_doctor_compares_versions(palmtop):
    ran = palmtop("doctor", "--json")
    assert ran.code == 0
    assert {entry["package"] for entry in ran.json["packages"]} >= {"torch", "onnx", "coremltools", "executorch"}
    assert {entry["target"]: entry["export"] for entry in ran.json["targets"]} == dict.fromkeys(
        ("onnx", "coreml", "executorch"), "ready"
    )
    assert "torch" in palmtop("doctor").err


# --- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["verify"], ["inspect"], ["run", "wake me up"], ["run", "a", "b"]], ids=str)
def test_json_is_one_document_and_nothing_on_stderr(palmtop, exported, arguments):
    verb, *texts = arguments
    ran = palmtop(verb, exported.path, *texts, "--json")
    assert ran.code == 0
    assert ran.err == ""
    assert isinstance(ran.json, dict)
    json.loads(ran.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_no_progress_or_colour_where_no_terminal_is(palmtop, exported):
    ran = palmtop("verify", exported.path)
    assert "\x1b" not in ran.err
    assert "\r" not in ran.err
    assert "Verifying" not in ran.err


def test_a_reader_that_leaves_early_is_no_error(exported):
    code = f"""
import sys
from palmtop.export.cli import main
sys.exit(main(["inspect", {str(exported.path)!r}, "--json"]))
"""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_sizes_are_for_people():
    assert [size(n) for n in (0, 999, 1000, 90_300_000, 2_000_000_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "90.3 MB",
        "2.0 GB",
    ]
