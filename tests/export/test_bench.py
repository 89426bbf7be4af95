"""`palmtop bench`: figures of every artifact beside their agreement, and the task's metric on labelled data."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from palmtop.export import export_module
from palmtop.export.cli import main
from palmtop.runtime import backends, load
from palmtop.runtime.backends import Backend
from palmtop.runtime.bench import interleaved
from palmtop.runtime.bundle import Bundle

from .test_cli import assert_refused

ROOT = Path(__file__).parents[2]
QUICK = ("--repeats", 2, "--cold-starts", 0)


@pytest.fixture(scope="module")
def measured(exported, checkpoint):
    """One bench of the tiny bundle beside its checkpoint, as JSON, run by the command line."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        arguments = ["--reference", str(checkpoint()), "--lengths", "8,24", "--repeats", "3", "--cold-starts", "1"]
        assert main(["bench", str(exported.path), *arguments, "--json"]) == 0
    return json.loads(out.getvalue())


# --- speed ----------------------------------------------------------------------------------------------------------


def test_every_artifact_and_the_eager_model_are_measured_at_every_length(measured):
    entries = [*measured["artifacts"], measured["eager"]]
    assert [entry["name"] for entry in entries] == ["onnx", "coreml", "executorch", "eager"]
    for entry in entries:
        assert [latency["length"] for latency in entry["latency"]] == [8, 24]
        for latency in entry["latency"]:
            assert 0 < latency["p50_ms"] <= latency["p90_ms"] <= latency["p99_ms"]
            assert latency["calls"] == 3
        assert entry["size"] > 10_000
        assert entry["sentences_per_second"]["one at a time"] > 0


def test_each_figure_stands_beside_the_agreement_of_the_same_run(measured):
    for entry in measured["artifacts"]:
        for latency in entry["latency"]:
            assert latency["speedup"] > 0
            assert latency["cosine"] > 0.999999
            assert 0 <= latency["max_error"] < 1e-4
        assert entry["agreement"]["status"] == "passed"
        assert entry["agreement"]["decisions"]["total"] > 10
        assert entry["problems"] == []
    assert measured["eager"]["note"] is None


def test_batches_are_measured_where_an_artifact_takes_them(measured):
    rates = {entry["name"]: entry["sentences_per_second"]["batches"] for entry in measured["artifacts"]}
    assert rates["onnx"] > 0
    assert rates["coreml"] is rates["executorch"] is None


def test_a_cold_start_is_a_process_of_its_own(measured):
    starts = {entry["name"]: entry["cold_start"] for entry in [*measured["artifacts"], measured["eager"]]}
    for cold in starts.values():
        stages = cold["import_s"] + cold["load_s"] + cold["first_s"]
        assert 0 < stages == pytest.approx(cold["total_s"], rel=0.01)
        assert cold["processes"] == 1
    # A process without torch in it holds less than one with it, whatever this one holds.
    assert starts["onnx"]["peak_bytes"] < starts["eager"]["peak_bytes"]
    assert starts["onnx"]["peak_bytes"] < 400e6


def test_which_engine_ran_is_said(measured):
    engines = {entry["name"]: entry["engine"] for entry in measured["artifacts"]}
    assert "ONNX Runtime" in engines["onnx"]
    assert "ExecuTorch" in engines["executorch"]
    coreml = measured["artifacts"][1]
    assert sys.platform == "darwin" or ("interpreter" in coreml["engine"] and "phone" in coreml["note"])


def test_the_tables_are_for_people_and_stdout_stays_empty(palmtop, exported):
    ran = palmtop("bench", exported.path, "--lengths", 16, *QUICK)
    assert (ran.code, ran.out) == (0, "")
    for words in ("p99 ms", "sentences/s", "onnx", "executorch", "1 thread", "golden vectors", "1.0000000"):
        assert words in ran.err
    if sys.platform != "darwin":
        assert "its speed says nothing of a phone's" in ran.err


def test_another_checkpoint_as_reference_is_told_and_fails(palmtop, exported, checkpoint):
    ran = palmtop("bench", exported.path, "--target", "onnx", "--reference", checkpoint(seed=7), *QUICK, "--json")
    assert ran.code == 1
    assert "not those that the bundle was made of" in ran.json["eager"]["note"]
    assert ran.json["artifacts"][0]["latency"][0]["cosine"] < 0.999
    assert ran.json["artifacts"][0]["problems"]


def test_an_artifact_that_is_not_the_model_fails(palmtop, bundle, monkeypatch):
    real = backends.get_backend("onnx")

    def wrong(*arguments):
        made = real.open(*arguments)
        run = made.run
        made.run = lambda feeds: {name: value + 1 for name, value in run(feeds).items()}
        return made

    monkeypatch.setattr("palmtop.runtime.backends.onnx.BACKEND", Backend("onnx", wrong, real.missing, real.contents))
    ran = palmtop("bench", bundle, "--target", "onnx", *QUICK)
    assert ran.code == 1
    assert "error: onnx/model.onnx: logits: max error" in ran.err


def test_a_bundle_of_a_module_is_measured_on_its_golden_inputs(palmtop, tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    made = export_module(net, {"x": torch.rand(3, 4)}, tmp_path / "net.bundle", to=["onnx"])
    ran = palmtop("bench", made.path, "--repeats", 2, "--cold-starts", 1, "--json")
    (entry,) = ran.json["artifacts"]
    assert [latency["length"] for latency in entry["latency"]] == [None]
    assert entry["sentences_per_second"] == {}
    assert entry["cold_start"]["first_s"] > 0
    assert_refused(palmtop("bench", made.path, "--lengths", 16), 2, "takes no text")
    assert_refused(palmtop("bench", made.path, "--reference", "x"), 2, "not a checkpoint")
    assert_refused(palmtop("bench", made.path, "--accuracy", "--data", "x"), 2, "no task")


def test_runs_take_turns():
    seen = []
    times = interleaved({name: lambda name=name: seen.append(name) for name in "abc"}, 3, 0)
    assert "".join(seen) == "abc" + "abc" + "bca" + "cab"  # the first three are not timed
    assert {name: len(mine) for name, mine in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_time_instead_of_a_number_of_calls():
    assert len(interleaved({"a": lambda: None}, None, 1e-9)["a"]) >= 5


# --- accuracy -------------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(exported, tmp_path):
    """Ten sentences with the exported model's own labels, two of them changed."""
    texts = [f"wake me at {hour}" for hour in ("one", "two", "three", "four", "five", "six", "seven", "8", "9", "10")]
    own = [labels[0].label for labels in load(exported.path)(texts, top_k=1)]
    other = list(Bundle.open(exported.path).manifest.postprocess["id2label"].values())
    labels = [*own[:8], *(next(label for label in other if label != mine) for mine in own[8:])]
    path = tmp_path / "held-out.jsonl"
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_accuracy_of_every_artifact_and_of_the_reference(palmtop, exported, checkpoint, labelled):
    ran = palmtop("bench", exported.path, "--accuracy", "--data", labelled, "--reference", checkpoint(), "--json")
    assert ran.code == 0
    entries = [*ran.json["artifacts"], ran.json["eager"]]
    assert [entry["name"] for entry in entries] == ["onnx", "coreml", "executorch", "eager"]
    for entry in entries:
        assert entry["scores"] == {"accuracy": 0.8}
        assert entry["same"] == 1.0
    assert ran.json["compared_with"] == "eager"
    assert ran.json["data"]["examples"] == 10


def test_without_a_reference_decisions_are_compared_with_the_fp32_artifact(palmtop, exported, labelled):
    ran = palmtop("bench", exported.path, "--accuracy", "--data", labelled, "--target", "coreml,onnx")
    assert (ran.code, ran.out) == (0, "")
    for words in ("accuracy", "0.8000", "100.00%", "the fp32 coreml artifact", "10 examples"):
        assert words in ran.err


def test_the_snippet_of_the_page_runs(exported, labelled, monkeypatch):
    monkeypatch.chdir(labelled.parent)
    shutil.copytree(exported.path, "intents.bundle")
    page = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    values: dict = {}
    exec(snippet, values)
    assert values["result"].scores == {"accuracy": 0.8}


def test_the_sample_of_the_readme_is_the_held_out_set_of_the_sample_checkpoint():
    lines = (ROOT / "sample_apps/checkpoints/intents/evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    labels = json.loads((ROOT / "sample_apps/checkpoints/intents/config.json").read_text(encoding="utf-8"))["label2id"]
    assert {json.loads(line)["label"] for line in lines} == set(labels)
    assert "--accuracy --data sample_apps/checkpoints/intents/evaluation.jsonl" in (ROOT / "README.md").read_text(
        "utf-8"
    )


# --- wrong requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "tflite"], "It has: onnx, coreml, executorch"),
        (["--lengths", "16,4096"], "--lengths 4096"),
        (["--lengths", "0"], "number from 1 on"),
        (["--lengths", "16;32"], "16;32"),
        (["--threads", "0"], "number from 1 on"),
        (["--seconds", "0"], "more than 0"),
        (["--seconds", "nan"], "more than 0"),
        (["--seconds", "1", "--repeats", "2"], "give one"),
        (["--accuracy"], "--data FILE"),
        (["--data", "x.jsonl"], "without --accuracy"),
        (["--accuracy", "--data", "x.jsonl", "--lengths", "16", "--cold-starts", "1"], "--lengths, --cold-starts"),
        (["--accuracy", "--data", "missing.jsonl"], "No such file: missing.jsonl"),
        (["--revision", "main"], "--reference SOURCE"),
        (["--reference", "./no/such/checkpoint"], "no/such/checkpoint"),
    ],
)
def test_wrong_requests_are_refused_with_a_remedy(palmtop, exported, arguments, says):
    assert_refused(palmtop("bench", exported.path, *arguments), 2, says)


def test_no_such_bundle(palmtop, tmp_path):
    assert_refused(palmtop("bench", tmp_path / "missing.bundle"), 2, "No such bundle")


def test_an_artifact_that_nothing_here_executes_is_named_not_dropped(palmtop, exported, monkeypatch):
    real = backends.get_backend("executorch")
    monkeypatch.setattr(
        "palmtop.runtime.backends.executorch.BACKEND",
        Backend("executorch", real.open, lambda: "Install executorch.", real.contents),
    )
    ran = palmtop("bench", exported.path, *QUICK, "--json")
    entry = ran.json["artifacts"][2]
    assert (ran.code, entry["reason"], entry["latency"]) == (0, "Install executorch.", [])
    assert_refused(palmtop("bench", exported.path, "--target", "executorch"), 2, "Install executorch.")
