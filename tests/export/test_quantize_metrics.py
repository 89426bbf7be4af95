"""What a quantized artifact is held to: decisions, accuracy, and what cannot be asked for."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from palmtop.runtime import load

from .quantizing import CONFIG
from .test_verify_bites import edit_onnx


def labelled(fp32: Path, path: Path) -> Path:
    """Examples whose labels are what the fp32 model says."""
    texts = [f"{verb} the {thing}" for verb in ("play", "stop", "turn on") for thing in ("music", "alarm", "lights")]
    labels = [answer[0].label for answer in load(fp32)(texts)]
    path.write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in zip(texts, labels, strict=True)))
    return path


def test_top1_counts_decisions(classifier, palmtop, tmp_path):
    options = ("--quantize", "int8", "--metric", "top1", "--min-agreement", "0.9", "--json")
    ran = palmtop("export", classifier, "-o", tmp_path / "b", "--to", "onnx", *options)
    assert ran.code == 0
    (artifact,) = ran.json["parity"]["artifacts"]
    assert artifact["agreement"]["least"] == 0.9
    assert artifact["agreement"]["same"] >= 0.9 * artifact["agreement"]["total"]
    assert palmtop("verify", tmp_path / "b").code == 0


def test_top1_is_refused_where_nothing_is_decided(checkpoint, palmtop, tmp_path):
    folder = checkpoint("bert", "feature-extraction", config=CONFIG)
    ran = palmtop("export", folder, "-o", tmp_path / "b", "--to", "onnx", "--quantize", "int8", "--metric", "top1")
    assert ran.code == 2
    assert "feature-extraction makes no decision" in ran.err


def test_accuracy_is_the_share_of_the_references_score(classifier, fp32, palmtop, tmp_path):
    data = labelled(fp32, tmp_path / "data.jsonl")
    options = ("--quantize", "int8", "--metric", "accuracy", "--data", data, "--min-agreement", "0.8")
    assert palmtop("export", classifier, "-o", tmp_path / "b", "--to", "onnx", *options).code == 0
    assert (
        json.loads((tmp_path / "b/manifest.json").read_text())["artifacts"][0]["quantization"]["metric"] == "accuracy"
    )


@pytest.mark.parametrize("metric", ["cosine", "top1", "accuracy"])
def test_weights_that_are_a_little_off_fail_later_whatever_the_bundle_was_judged_by(
    classifier, fp32, palmtop, tmp_path, metric
):
    data = ["--data", labelled(fp32, tmp_path / "data.jsonl")] if metric == "accuracy" else []
    asked = ("--quantize", "int8", "--metric", metric, *data, "--min-agreement", "0.5")  # far below what it has
    assert palmtop("export", classifier, "-o", tmp_path / "b", "--to", "onnx", *asked).code == 0
    assert palmtop("verify", tmp_path / "b").code == 0
    assert palmtop("verify", tmp_path / "b", "--reference", classifier).code == 0

    def change(graph: onnx.GraphProto) -> None:
        weight = next(t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2)
        values = numpy_helper.to_array(weight).copy()
        values[:, :8] = 0  # one output in eight, of one layer
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))

    edit_onnx(tmp_path / "b", change)
    ran = palmtop("verify", tmp_path / "b")
    assert ran.code == 1
    assert "agreement 0.9" in ran.err
    if metric != "cosine":  # against the model itself the cosine that was asked for is what counts
        assert palmtop("verify", tmp_path / "b", "--reference", classifier).code == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--quantize", "int8", "--metric", "accuracy"), "--metric accuracy and --data FILE"),
        (("--quantize", "int8", "--data", "x.jsonl"), "--metric accuracy and --data FILE"),
        (("--quantize", "int8", "--metric", "bleu"), "cosine, top1, accuracy, not bleu"),
        (("--quantize", "auto", "--prefer", "beauty"), "size or speed, not beauty"),
        (("--quantize", "auto", "--min-agreement", "1.5"), "between 0 and 1"),
        (("--quantize", "auto", "--min-agreement", "0"), "between 0 and 1"),
        (("--quantize", "int3"), "Unknown quantization 'int3'"),
        (("--min-agreement", "0.9"), "held to parity itself"),
        (("--quantize", "bf16"), "The nearest: --quantize fp16"),
        (("--quantize", "fp16", "--keep-best"), "held to parity itself"),
        (("--plan", "missing.json"), "Cannot read the plan"),
    ],
)
def test_requests_that_make_no_sense(checkpoint, palmtop, tmp_path, options, said):
    ran = palmtop("export", checkpoint(), "-o", tmp_path / "b", "--to", "onnx", *options)
    assert ran.code == 2
    assert said in ran.err
