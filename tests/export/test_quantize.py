"""Quantized from end to end: presets, plans, the gate, and weights that get more bits."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from palmtop.export import export_checkpoint, export_module
from palmtop.export.judge import Judge
from palmtop.quantize.scheme import Plan, Scheme
from palmtop.runtime import load
from palmtop.runtime.bundle import Bundle
from palmtop.runtime.errors import ParityError, RequestError
from palmtop.runtime.verify import verify_bundle

from .quantizing import CONFIG, TASKS, export_three, files
from .test_verify_bites import edit_onnx


@pytest.fixture(scope="module")
def int8(classifier, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "small.bundle"
    return export_checkpoint(classifier, path, to=["onnx"], quantize="int8").path


def plan_of(bundle: Path) -> Plan:
    return Plan.read(bundle / "plan.json")


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_task_in_int8(checkpoint, tmp_path, task):
    bundle = tmp_path / "small.bundle"
    result = export_checkpoint(checkpoint("bert", task, config=CONFIG), bundle, to=["onnx"], quantize="int8")
    (artifact,) = result.manifest.artifacts
    assert (artifact.precision, artifact.quantization["metric"]) == ("int8", "cosine")
    assert artifact.quantization["min_agreement"] == 0.995
    (report,) = result.report.artifacts
    assert 0.995 <= report.agreed < 1
    plan = plan_of(bundle)
    assert len(plan.weights) >= 7
    assert sum(artifact.quantization["weights"].values()) == len(plan.weights)
    assert {file.path: file.role for file in result.manifest.files}["plan.json"] == "plan"
    stored = {str(node.op_type) for node in onnx.load(bundle / "onnx" / "model.onnx").graph.node}
    assert {"MatMulIntegerToFloat", "GatherBlockQuantized"} <= stored
    assert verify_bundle(Bundle.open(bundle)).passed


def test_int4_takes_less_than_int8_and_both_less_than_fp32(classifier, fp32, int8, tmp_path):
    export_checkpoint(classifier, tmp_path / "b", to=["onnx"], quantize="int4", min_agreement=0.9, fallback=False)
    sizes = []
    for bundle in (fp32, int8, tmp_path / "b"):
        tensors = onnx.load(bundle / "onnx" / "model.onnx").graph.initializer
        sizes.append(sum(numpy_helper.to_array(tensor).nbytes for tensor in tensors))
    assert sizes[1] < 0.4 * sizes[0]  # positions and what else has few numbers stay
    assert sizes[2] < 0.3 * sizes[0]


def test_answers_come_from_the_quantized_artifact(fp32, int8):
    small, full = (load(bundle)("Set an alarm for seven o'clock", top_k=None) for bundle in (int8, fp32))
    assert [entry.label for entry in small] == [entry.label for entry in full]
    differences = [abs(one.score - other.score) for one, other in zip(small, full, strict=True)]
    assert 0 < max(differences) < 0.05


# --- plans -----------------------------------------------------------------------------------------------------------


def test_the_same_export_and_the_plan_of_a_bundle_give_the_same_bytes(classifier, int8, palmtop, tmp_path):
    for name, options in {"again": ("--quantize", "int8"), "planned": ("--plan", int8 / "plan.json")}.items():
        assert palmtop("export", classifier, "-o", tmp_path / name, "--to", "onnx", *options).code == 0
    assert files(int8) == files(tmp_path / "again") == files(tmp_path / "planned")


def test_a_plan_of_another_model_is_refused(classifier, palmtop, tmp_path):
    (tmp_path / "plan.json").write_text(Plan({"encoder.layer.7.dense.weight": Scheme(8)}).dumps())
    ran = palmtop("export", classifier, "-o", tmp_path / "b", "--to", "onnx", "--plan", tmp_path / "plan.json")
    assert ran.code == 2
    assert "encoder.layer.7.dense.weight, no weight of this model" in ran.err
    assert "bert.encoder.layer.0" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_and_a_preset_exclude_each_other(checkpoint, palmtop, tmp_path):
    (tmp_path / "plan.json").write_text(Plan({}).dumps())
    options = ("--plan", tmp_path / "plan.json", "--quantize", "int8")
    ran = palmtop("export", checkpoint(), "-o", tmp_path / "b", *options)
    assert ran.code == 2
    assert "one of the two" in ran.err


@pytest.mark.parametrize(
    ("target", "scheme", "named", "nearest"),
    [
        ("onnx", Scheme(6, form="palette"), "palette6 per channel", "int8 per channel"),
        ("onnx", Scheme(2, "tensor", form="palette"), "palette2 per tensor", "int4 per block of 32"),
        ("onnx", Scheme(8, activations="static"), "static activations", "int8 per channel, dynamic activations"),
        ("executorch", Scheme(4, "tensor", form="palette"), "palette4 per tensor", "int4 per block of 32"),
        ("executorch", Scheme(8, activations="static"), "static activations", "int8 per channel, dynamic activations"),
    ],
)
def test_a_scheme_that_a_target_cannot_hold_is_named_with_the_nearest(tmp_path, target, scheme, named, nearest):
    with pytest.raises(RequestError, match=rf"{named}.* layers\.1\.weight.*nearest.*{nearest}"):
        export_three(1, tmp_path / "b", to=[target], plan=Plan({"layers.1.weight": scheme}))
    assert not list(tmp_path.iterdir())


def test_a_plan_of_palettes_is_for_core_ml(tmp_path):
    plan = Plan({"layers.0.weight": Scheme(6, "tensor", form="palette"), "layers.1.weight": Scheme(8)})
    result = export_three(1, tmp_path / "b", to=["coreml"], plan=plan, min_agreement=0.999)
    assert result.report.passed
    assert set(result.manifest.artifacts[0].quantization["weights"]) == {"palette6 per tensor", "int8 per channel"}
    assert plan_of(tmp_path / "b") == plan


def test_a_model_with_nothing_to_quantize_is_refused(tmp_path):
    with pytest.raises(RequestError, match="no weight that is worth quantizing"):
        export_module(torch.nn.Linear(4, 4), {"input": torch.zeros(1, 4)}, tmp_path / "b", to=["onnx"], quantize="int8")


# --- the gate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "gain", "expected"),
    [
        ("int4", 25, {"layers.0.weight": 4, "layers.1.weight": 8, "layers.2.weight": 4}),
        ("int8", 200, {"layers.0.weight": 8, "layers.2.weight": 8}),
    ],
)
def test_the_one_sensitive_layer_gets_more_bits_and_the_others_keep_theirs(tmp_path, preset, gain, expected):
    result = export_three(gain, tmp_path / "b", quantize=preset)
    assert {name: scheme.bits for name, scheme in plan_of(tmp_path / "b").weights.items()} == expected
    assert f"{preset} alone does not keep" in result.notes[-1]
    assert result.report.passed
    with pytest.raises(ParityError, match=r"do not keep an agreement of 0\.9.*\n.*agreement 0\.[0-8]"):
        export_three(gain, tmp_path / "c", quantize=preset, fallback=False)
    assert not (tmp_path / "c").exists()


def test_a_users_plan_is_held_to_the_bound_and_never_changed(tmp_path):
    plan = Plan(dict.fromkeys(("layers.0.weight", "layers.1.weight", "layers.2.weight"), Scheme(4)))
    with pytest.raises(ParityError, match="do not keep an agreement"):
        export_three(25, tmp_path / "b", plan=plan)
    result = export_three(25, tmp_path / "b", plan=plan, keep_best=True)
    assert not result.report.passed
    assert plan_of(tmp_path / "b") == plan


def test_auto_finds_a_plan_that_holds_the_bound_and_is_smaller_than_int8(tmp_path):
    result = export_three(25, tmp_path / "b", quantize="auto", min_agreement=0.99)
    bits = {name: scheme.bits for name, scheme in plan_of(tmp_path / "b").weights.items()}
    assert bits["layers.1.weight"] == 8
    assert 4 in bits.values()
    assert result.manifest.artifacts[0].precision == "mixed"
    assert result.report.artifacts[0].agreed >= 0.99
    chosen = [trial for trial in result.trials if trial["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["passed"]
    assert chosen[0]["pareto"]
    assert all(trial["size"] >= chosen[0]["size"] for trial in result.trials if trial["passed"])
    assert chosen[0]["sizes"]["onnx"] == (tmp_path / "b" / "onnx" / "model.onnx").stat().st_size


def test_speed_is_preferred_by_what_was_measured(tmp_path, monkeypatch):
    taken = iter(range(100, 0, -1))  # every later plan is faster
    execute = Judge.execute

    def timed(self, captured, plan):
        return dataclasses.replace(execute(self, captured, plan), milliseconds={"onnx": float(next(taken))})

    monkeypatch.setattr(Judge, "execute", timed)
    result = export_three(200, tmp_path / "b", quantize="auto", prefer="speed", min_agreement=0.99)
    passed = [trial for trial in result.trials if trial["passed"]]
    assert [trial["chosen"] for trial in passed] == [trial is passed[-1] for trial in passed]
    assert all(scheme.bits == 8 for scheme in plan_of(tmp_path / "b").weights.values())


def test_a_bound_that_nothing_meets_names_the_best_and_leaves_nothing(classifier, palmtop, tmp_path):
    asked = ("export", classifier, "-o", tmp_path / "b", "--to", "onnx", "--quantize", "auto", "--min-agreement", "1")
    ran = palmtop(*asked)
    assert ran.code == 1
    assert "No plan keeps an agreement of 1 (cosine); the best of" in ran.err
    assert "--keep-best" in ran.err
    assert not list(tmp_path.iterdir())
    kept = palmtop(*asked, "--keep-best")
    assert kept.code == 1
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["artifacts"]
    assert palmtop("verify", tmp_path / "b").code == 1
    reported = palmtop("report", tmp_path / "b")
    assert reported.code == 1
    assert "failed" in reported.err
    assert "min_agreement 1" in reported.err


# --- palmtop quantize ------------------------------------------------------------------------------------------------


def test_quantize_writes_a_plan_that_export_takes(classifier, int8, palmtop, tmp_path):
    plan = tmp_path / "plan.json"
    asked = ("quantize", classifier, "-o", plan, "--to", "onnx", "--quantize", "int8")
    ran = palmtop(*asked, "--json")
    assert ran.code == 0
    assert ran.json["plan"] == str(plan)
    assert plan.read_bytes() == (int8 / "plan.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    refused = palmtop(*asked)
    assert refused.code == 2
    assert "exists already" in refused.err


def test_quantize_makes_a_bundle_where_the_output_is_no_json_file(classifier, palmtop, tmp_path):
    ran = palmtop("quantize", classifier, "-o", tmp_path / "b", "--to", "onnx", "--min-agreement", "0.5")
    assert ran.code == 0
    assert "chosen" in ran.err
    assert "holds" in ran.err
    assert palmtop("verify", tmp_path / "b").code == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--quantize", "fp16"), "for fp16: palmtop export"),
        (("--plan", "plan.json"), "palmtop export --plan FILE"),
        (("-o", "missing/plan.json"), "No such folder: missing"),
    ],
)
def test_quantize_refuses_what_is_no_search(classifier, palmtop, tmp_path, options, said):
    ran = palmtop("quantize", classifier, "-o", tmp_path / "plan.json", "--to", "onnx", *options)
    assert ran.code == 2
    assert said in ran.err


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify_holds_a_quantized_bundle_to_what_was_asked_of_it(classifier, int8, palmtop, tmp_path):
    bundle = Path(shutil.copytree(int8, tmp_path / "b"))
    assert palmtop("verify", bundle).code == 0
    assert palmtop("verify", bundle, "--reference", classifier).code == 0

    def change(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "MatMulIntegerToFloat")
        tensor = next(entry for entry in graph.initializer if entry.name == node.input[1])
        values = numpy_helper.to_array(tensor).copy()
        values[:, ::2] = -values[:, ::2]
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    edit_onnx(bundle, change)
    ran = palmtop("verify", bundle)
    assert ran.code == 1
    assert "(at least 0.99" in ran.err
