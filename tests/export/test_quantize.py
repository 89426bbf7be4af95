"""Quantized from end to end: presets, plans, the gate, weights that get more bits, the search and its memory."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from palmtop.export import export_checkpoint, export_module
from palmtop.export.build import capture_subject
from palmtop.export.held_out import hold_back
from palmtop.export.judge import Judge
from palmtop.export.quantization import Quantizer, observe, single_rows
from palmtop.export.source import open_source
from palmtop.export.subject import checkpoint_subject
from palmtop.quantize.calibrate import calibrate
from palmtop.quantize.scheme import Plan, Scheme
from palmtop.quantize.sites import find_sites
from palmtop.runtime import load
from palmtop.runtime.bundle import Bundle
from palmtop.runtime.errors import ParityError, RequestError
from palmtop.runtime.verify import verify_bundle
from safetensors.torch import load_file, save_file

from .test_verify_bites import edit_onnx

# Weights of 4,096 numbers or more, so that there is something to quantize.
CONFIG = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
TASKS = (
    "text-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
    "multiple-choice",
    "feature-extraction",
    "sentence-similarity",
)


@pytest.fixture(scope="module")
def classifier(checkpoint) -> Path:
    return checkpoint("bert", "text-classification", config=CONFIG)


@pytest.fixture(scope="module")
def fp32(classifier, tmp_path_factory) -> Path:
    return export_checkpoint(classifier, tmp_path_factory.mktemp("fp32") / "full.bundle", to=["onnx"]).path


@pytest.fixture(scope="module")
def int8(classifier, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "small.bundle"
    return export_checkpoint(classifier, path, to=["onnx"], quantize="int8").path


def files(bundle: Path) -> dict[str, bytes]:
    return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def plan_of(bundle: Path) -> Plan:
    return Plan.read(bundle / "plan.json")


class Beside(torch.nn.Module):
    """Layers beside each other. What each gives goes through a sine: the larger its gain, the more an error counts."""

    def __init__(self, *gains: float) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.gains = gains
        self.layers = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in gains)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.sin(gain * layer(x)) for gain, layer in zip(self.gains, self.layers, strict=True)], -1)


def export_layers(module: Beside, destination: Path, **options):
    generator = torch.Generator().manual_seed(0)
    example, *others = ({"x": torch.randn(16, 64, generator=generator)} for _ in range(5))
    return export_module(module, example, destination, verify_inputs=others, **{"to": ["onnx"], **options})


def export_three(gain: float, destination: Path, **options):
    """Three layers, the middle one sensitive."""
    return export_layers(Beside(0.5, gain, 0.5), destination, **options)


def export_many(destination: Path, min_agreement: float = 0.995, **options):
    """Layers of all sensitivities, which a search needs several trials for."""
    module = Beside(1, 3, 5, 8, 12, 20, 30, 50)
    return export_layers(module, destination, quantize="auto", min_agreement=min_agreement, **options)


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


# --- metrics ---------------------------------------------------------------------------------------------------------


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
        (("--quantize", "fp16", "--keep-best"), "held to parity itself"),
        (("--plan", "missing.json"), "Cannot read the plan"),
    ],
)
def test_requests_that_make_no_sense(checkpoint, palmtop, tmp_path, options, said):
    ran = palmtop("export", checkpoint(), "-o", tmp_path / "b", "--to", "onnx", *options)
    assert ran.code == 2
    assert said in ran.err


# --- calibration -----------------------------------------------------------------------------------------------------


def calibration(checkpoint, task, path):
    """What a file gives to calibrate a model of a task with."""
    return checkpoint_subject(open_source(checkpoint("bert", task, config=CONFIG)), None, None).calibration(path)


@pytest.mark.parametrize(
    ("task", "name", "content", "said"),
    [
        ("text-classification", "texts.txt", "\n  \n", "holds no text"),
        ("text-classification", "texts.txt", None, "cannot be read"),
        ("text-classification", "photo.jpg", b"\xff\xd8\xff\xe0", "cannot be read"),
        ("text-classification", "texts.jsonl", '{"image": "cat.png"}\n', "line 1: expected an object with a text"),
        ("text-classification", "texts.jsonl", "play\n", "line 1, is not JSON"),
        (
            "question-answering",
            "texts.txt",
            "Who wrote it?\n",
            "question-answering needs JSON lines with a text and a t",
        ),
        (
            "multiple-choice",
            "texts.txt",
            "It rained.\n",
            "multiple-choice needs JSON lines with a text and a text_pair",
        ),
    ],
)
def test_calibration_files_that_are_not_what_the_task_needs(checkpoint, tmp_path, task, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError, match=said):
        calibration(checkpoint, task, path)


def test_a_calibration_file_without_texts_is_a_wrong_request(classifier, palmtop, tmp_path):
    (tmp_path / "texts.txt").write_text("\n")
    asked = ("--to", "onnx", "--quantize", "int8", "--calibrate", tmp_path / "texts.txt")
    ran = palmtop("export", classifier, "-o", tmp_path / "b", *asked)
    assert ran.code == 2
    assert "holds no text" in ran.err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("task", "rank"), [("text-classification", 2), ("question-answering", 2), ("multiple-choice", 3)]
)
def test_calibration_files_of_pairs(checkpoint, tmp_path, task, rank):
    line = json.dumps({"text": "Who wrote it?", "text_pair": "It was written in Lyon."})
    (tmp_path / "texts.jsonl").write_text(f"{line}\n{line}\n")
    feeds = calibration(checkpoint, task, tmp_path / "texts.jsonl")
    assert [feed["input_ids"].ndim for feed in feeds] == [rank, rank]


@pytest.mark.parametrize("task", TASKS)
def test_palmtops_own_texts_fit_every_task(checkpoint, task):
    feeds = calibration(checkpoint, task, None)
    assert len(feeds) >= (3 if task == "multiple-choice" else 100)


def test_of_many_texts_some_from_all_over_the_file_are_taken(checkpoint, tmp_path):
    (tmp_path / "texts.txt").write_text("play\n" * 3000 + "turn off the lights in the living room\n" * 3000)
    lengths = [
        feed["input_ids"].shape[1] for feed in calibration(checkpoint, "text-classification", tmp_path / "texts.txt")
    ]
    assert len(lengths) == 2000
    assert lengths.count(min(lengths)) == 1000


def test_a_text_that_makes_the_model_give_nan_is_refused(classifier, palmtop, tmp_path):
    folder = Path(shutil.copytree(classifier, tmp_path / "checkpoint"))
    subject = checkpoint_subject(open_source(folder), None, None)
    used = {int(one) for case in subject.cases() for one in np.unique(case.feeds["input_ids"])}
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    word = max((word for word, number in vocabulary.items() if number not in used and word.isalpha()), key=len)
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][vocabulary[word]] = float("inf")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (tmp_path / "texts.txt").write_text(f"play some music\n{word}\n")
    asked = ("--to", "onnx", "--quantize", "int8", "--calibrate", tmp_path / "texts.txt")
    ran = palmtop("export", folder, "-o", tmp_path / "b", *asked)
    assert ran.code == 2
    assert "an input makes the model give NaN or infinity" in ran.err
    assert not (tmp_path / "b").exists()


# --- the memory of a search ------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """How often costs were measured and plans executed, with a memory of its own."""
    monkeypatch.setenv("PALMTOP_CACHE", str(tmp_path / "cache"))
    counts = {"costs": 0, "trials": 0}
    table, execute = Quantizer.table, Judge.execute

    def counting_table(*arguments, **options):
        counts["costs"] += 1
        return table(*arguments, **options)

    def counting_execute(*arguments):
        counts["trials"] += 1
        if counts["trials"] == counts.get("interrupt"):
            raise KeyboardInterrupt
        return execute(*arguments)

    monkeypatch.setattr(Quantizer, "table", counting_table)
    monkeypatch.setattr(Judge, "execute", counting_execute)
    return counts


def test_an_interrupted_search_goes_on_where_it_was(counted, tmp_path):
    whole = export_many(tmp_path / "whole")
    needed = counted["trials"]
    assert needed >= 3
    for entry in (tmp_path / "cache").rglob("*.json"):
        entry.unlink()
    counted.update(costs=0, trials=0, interrupt=3)
    with pytest.raises(KeyboardInterrupt):
        export_many(tmp_path / "b")
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "cache"}
    result = export_many(tmp_path / "b")
    assert counted["costs"] == 1
    assert counted["trials"] == needed + 1  # the one that was interrupted is done again
    assert [trial["agreement"] for trial in result.trials] == [trial["agreement"] for trial in whole.trials]
    assert files(tmp_path / "b") == files(tmp_path / "whole")


def test_what_a_search_found_holds_for_the_same_content_only(counted, tmp_path):
    export_three(25, tmp_path / "a", quantize="auto", min_agreement=0.99)
    first = counted["trials"]
    export_three(25, tmp_path / "b", quantize="auto", min_agreement=0.99, keep_best=True)
    assert (counted["costs"], counted["trials"]) == (1, first + 1)  # the chosen plan's artifacts are made again
    export_three(25, tmp_path / "c", quantize="auto", min_agreement=0.9)
    assert (counted["costs"], counted["trials"] > first + 1) == (1, True)  # the same costs, other trials
    other = Beside(0.5, 25, 0.5)
    other.layers[2].weight.data *= 2
    export_layers(other, tmp_path / "d", quantize="auto", min_agreement=0.9)
    assert counted["costs"] == 2


def test_a_damaged_memory_is_no_memory(counted, tmp_path):
    export_three(25, tmp_path / "a", quantize="auto", min_agreement=0.99)
    for path in (tmp_path / "cache").rglob("*.json"):
        path.write_text(path.read_text()[:-5])
    export_three(25, tmp_path / "b", quantize="auto", min_agreement=0.99)
    assert counted["costs"] == 2
    assert files(tmp_path / "a") == files(tmp_path / "b")


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


def test_calibration_sees_the_same_in_batches_as_one_at_a_time(classifier):
    subject = checkpoint_subject(open_source(classifier), None, None)
    captured = capture_subject(subject)
    feeds = list(single_rows(subject.calibration(None)))[:60]
    assert len({feed["input_ids"].shape for feed in feeds}) < len(feeds)
    done: list[None] = []
    together = observe(captured, feeds, lambda: done.append(None))
    alone = calibrate(captured.program, find_sites(captured.program), feeds)
    assert len(done) == len(feeds)
    for name, entry in alone.items():
        assert together[name].rows == entry.rows
        torch.testing.assert_close(together[name].largest, entry.largest, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together[name].hessian, entry.hessian, rtol=1e-3, atol=1e-3)


# --- what a model is judged on ---------------------------------------------------------------------------------------


def test_every_tenth_input_is_held_back_and_a_few_of_few():
    feeds = [{"x": np.full((1, 2), number)} for number in range(100)]

    def held(count: int) -> list[int]:
        kept, back = hold_back(feeds[:count])
        assert len(kept) + len(back) == count
        assert not {int(feed["x"][0, 0]) for feed in kept} & {int(feed["x"][0, 0]) for feed in back}
        return [int(feed["x"][0, 0]) for feed in back]

    assert held(100) == [9, 19, 29, 39, 49, 59, 69, 79, 89, 99]
    assert held(12) == [2, 5, 8, 11]
    assert held(11) == []


def test_texts_of_the_users_are_what_a_model_is_judged_on(classifier, palmtop, tmp_path):
    words = ("play", "stop", "jazz", "alarm", "living room", "at seven", "tomorrow")
    (tmp_path / "texts.txt").write_text(
        "".join(f"{a} {b} {c}\n" for a in words for b in words for c in words[: 1 + len(a) % 3])
    )
    asked = ("--to", "onnx", "--quantize", "int8", "--calibrate", tmp_path / "texts.txt")
    ran = palmtop("export", classifier, "-o", tmp_path / "b", *asked)
    assert ran.code == 0
    assert "inputs of " in ran.err
    manifest = Bundle.open(tmp_path / "b").manifest
    assert {artifact.quantization["judged_on"] for artifact in manifest.artifacts} == {"calibration"}
    report = json.loads((tmp_path / "b" / "parity.json").read_text())["artifacts"][0]
    (output,) = report["outputs"]
    assert output["worst_case"].startswith("held out")
    assert output["shapes"] >= 2  # alone and in batches
    assert output["bound"]["agreement"] == 0.995
    assert 0.9 < manifest.parity["artifacts"]["onnx"]["golden"]["logits"] < 1
    assert palmtop("verify", tmp_path / "b").code == 0
    assert palmtop("verify", tmp_path / "b", "--reference", classifier).code == 0


def test_golden_vectors_are_no_part_of_the_bound_where_the_users_texts_are(classifier, tmp_path):
    """What matters to the user agrees; other texts do not, and that is recorded, not refused."""
    (tmp_path / "texts.txt").write_text("play some jazz\n" * 40)
    asked = {"to": ["onnx"], "quantize": "int4", "fallback": False, "calibration": tmp_path / "texts.txt"}
    result = export_checkpoint(classifier, tmp_path / "b", min_agreement=0.995, **asked)
    golden = result.manifest.parity["artifacts"]["onnx"]["golden"]["logits"]
    assert golden < 0.995 <= result.report.artifacts[0].agreed
    assert verify_bundle(Bundle.open(tmp_path / "b")).passed
