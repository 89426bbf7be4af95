"""`palmtop verify --explain`: in every format, the table names the module in which an artifact was altered."""

from __future__ import annotations

import dataclasses
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from palmtop.export import build, export_checkpoint, export_module
from palmtop.export.explain import _Inside, _merged, explain
from palmtop.export.layers import Observing, module_values
from palmtop.export.module_subject import module_subject
from palmtop.export.reference import Reference
from palmtop.export.targets import executorch_lowering
from palmtop.runtime.backends import Traced
from palmtop.runtime.backends.coreml import module_of_operations
from palmtop.runtime.manifest import TensorSpec
from palmtop.runtime.mil.package import Package
from palmtop.runtime.session import Session

from .overflowing import LoudChannel
from .test_verify_bites import edit_onnx, reseal

ALTERED = "bert.encoder.layer.1.attention.output.dense"


def alter_onnx(bundle: Path) -> None:
    """Change a weight of ALTERED: the constant that its matrix product reads."""

    def change(graph) -> None:
        (product,) = (
            node
            for node in graph.node
            if node.op_type == "Gemm" and any(entry.value == ALTERED for entry in node.metadata_props)
        )
        (weight,) = (tensor for tensor in graph.initializer if tensor.name == product.input[1])
        values = numpy_helper.to_array(weight).copy()
        values[3, 5] += 1.0
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))

    edit_onnx(bundle, change)


def alter_coreml(bundle: Path) -> None:
    """Change a weight of ALTERED in the weight file."""
    package = bundle / "coreml" / "model.mlpackage"
    modules = module_of_operations(package)
    function = Package(package).spec.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    (linear,) = (op for op in operations if op.type == "linear" and modules.get(op.outputs[0].name) == ALTERED)
    name = linear.inputs["weight"].arguments[0].name
    (constant,) = (op for op in operations if op.type == "const" and op.outputs[0].name == name)
    path = next(package.rglob("weight.bin"))
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<Q", data, constant.attributes["val"].blobFileValue.offset + 16)
    struct.pack_into("<f", data, start, struct.unpack_from("<f", data, start)[0] + 1.0)
    path.write_bytes(data)
    reseal(bundle)


@pytest.mark.parametrize(("target", "alter"), [("onnx", alter_onnx), ("coreml", alter_coreml)])
def test_an_altered_weight_is_found_in_its_module(palmtop, bundle, checkpoint, target, alter):
    alter(bundle)
    ran = palmtop("verify", bundle, "--target", target, "--reference", checkpoint(), "--explain", "--json")
    assert ran.code == 1
    (explanation,) = ran.json["explanations"]
    assert explanation["first"]["module"] == ALTERED
    assert explanation["against"] == "the eager model"
    modules = [layer["module"] for layer in explanation["layers"]]
    before = explanation["layers"][: modules.index(ALTERED)]
    assert len(before) > 10
    assert all(layer["passed"] for layer in before)
    assert "very file" in explanation["how"]


def test_the_table_shows_the_module_and_where_they_part(palmtop, bundle, checkpoint):
    alter_onnx(bundle)
    ran = palmtop("verify", bundle, "--target", "onnx", "--reference", checkpoint(), "--explain")
    assert ran.code == 1
    (line,) = (line for line in ran.err.splitlines() if "parts here" in line)
    assert ALTERED in line
    assert f"onnx/model.onnx parts ways with the eager model at linear_9 (Gemm), in {ALTERED}: error" in ran.err
    assert ran.out == ""


def alter_lowering(patch: pytest.MonkeyPatch) -> None:
    """Have the ExecuTorch lowering get one weight wrong, as a faulty pass would."""
    faithful = executorch_lowering.rewrite

    def rewrite(program, **options):
        name = next(name for name in program.state_dict if name.endswith(f"{ALTERED}.weight"))
        changed = program.state_dict[name].detach().clone()
        changed[3, 5] += 1.0
        program._state_dict = {**program.state_dict, name: torch.nn.Parameter(changed, requires_grad=False)}
        faithful(program, **options)

    patch.setattr(executorch_lowering, "rewrite", rewrite)


@pytest.fixture(scope="module")
def wrong_pte(checkpoint, tmp_path_factory) -> Path:
    """A bundle whose `.pte` was lowered so, its export told to look away."""
    with pytest.MonkeyPatch.context() as patch:
        alter_lowering(patch)
        patch.setattr(build, "_refuse_failures", lambda *arguments: None)
        destination = tmp_path_factory.mktemp("wrong") / "wrong.bundle"
        return export_checkpoint(checkpoint(), destination, to=["executorch"]).path


def test_a_lowering_that_alters_a_weight_is_found_in_its_module(palmtop, wrong_pte, checkpoint, monkeypatch):
    alter_lowering(monkeypatch)
    ran = palmtop("verify", wrong_pte, "--reference", checkpoint(), "--explain", "--json")
    assert ran.code == 1
    (explanation,) = ran.json["explanations"]
    assert explanation["first"]["module"] == ALTERED
    assert "lowered again, as it was planned" in explanation["how"]
    assert "another model" not in explanation["how"]


def test_a_file_that_is_not_what_lowering_gives_is_said_to_be_another_model(palmtop, wrong_pte, checkpoint):
    ran = palmtop("verify", wrong_pte, "--reference", checkpoint(), "--explain", "--json")
    (explanation,) = ran.json["explanations"]
    assert "the file is another model" in explanation["how"]
    assert explanation["first"]["kind"] == "output"  # no module is to blame


def test_quantized_weights_cannot_be_lowered_again_from_the_checkpoint(palmtop, checkpoint, exported, monkeypatch):
    """Rather than a table of another model, which the checkpoint lowered again would be."""
    original = Session.open

    def opened(root, artifact, identity, threads=None):
        session = original(root, artifact, identity, threads)
        session.artifact = dataclasses.replace(artifact, precision="int8")
        return session

    monkeypatch.setattr(Session, "open", opened)
    ran = palmtop("verify", exported.path, "--target", "executorch", "--reference", checkpoint(), "--explain", "--json")
    (entry,) = ran.json["explanations"]
    assert entry["path"] == "executorch/model.pte"
    assert "explain another target" in entry["error"]


def test_artifacts_that_are_the_model_do_not_part_ways(palmtop, bundle, checkpoint):
    ran = palmtop("verify", bundle, "--reference", checkpoint(), "--explain", "--json")
    assert ran.code == 0
    assert [entry["target"] for entry in ran.json["explanations"]] == ["onnx", "coreml", "executorch"]
    for entry in ran.json["explanations"]:
        assert entry["first"] is None
        assert entry["unmatched"] == []
        modules = {layer["module"] for layer in entry["layers"] if layer["kind"] == "Linear"}
        assert {ALTERED, "bert.encoder.layer.0.attention.self.query", "classifier"} <= modules


def test_without_a_reference_fp32_artifacts_cannot_be_explained(palmtop, bundle):
    for arguments in ([], ["--target", "onnx"], ["--target", "coreml"]):
        ran = palmtop("verify", bundle, "--explain", *arguments)
        assert ran.code == 2
        assert "--reference SOURCE" in ran.err


@pytest.fixture(scope="module")
def loud_bundle(tmp_path_factory) -> Path:
    """fp16 artifacts of a module, one of which overflows, its export told to look away."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_refuse_failures", lambda *arguments: None)
        return export_module(
            LoudChannel(),
            {"x": torch.randn(1, 5, 16)},
            tmp_path_factory.mktemp("loud") / "net.bundle",
            to=["onnx", "coreml"],
            quantize="fp16",
            fallback=False,
        ).path


def test_fp16_core_ml_explains_itself_without_the_model(palmtop, loud_bundle):
    ran = palmtop("verify", loud_bundle, "--explain", "--json")
    assert ran.code == 1
    (explanation,) = ran.json["explanations"]  # of ONNX nothing can be said without the model
    assert explanation["target"] == "coreml"
    assert explanation["against"] == "its own arithmetic in fp32"
    assert explanation["first"]["module"] == "norm"
    assert explanation["first"]["type"] == "pow"
    assert explanation["first"]["nonfinite"] > 0
    modules = [layer["module"] for layer in explanation["layers"]]
    assert modules.index("embed") < modules.index("quiet") < modules.index("norm") < modules.index("head")
    human = palmtop("verify", loud_bundle, "--explain")
    assert "not compared with the model itself" in human.err
    assert "NaN or inf" in human.err


def test_fp16_core_ml_is_explained_where_there_is_no_torch(loud_bundle):
    program = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from palmtop.export.cli import main\n"
        f"sys.exit(main(['verify', {str(loud_bundle)!r}, '--target', 'coreml', '--explain']))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "(pow), in norm: it reaches 3.6e+05" in ran.stderr
    assert "--keep-fp32 norm" in ran.stderr
    assert "parts ways with its own arithmetic in fp32 at" in ran.stderr


class Merges(torch.nn.Module):
    """A convolution and its batch norm, which converters make one of; dropout, which is nothing; a layer run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.drop = torch.nn.Dropout(0.5)
        self.twice = torch.nn.Conv2d(4, 4, 1)
        torch.nn.init.uniform_(self.norm.running_var, 0.5, 2)
        torch.nn.init.normal_(self.norm.running_mean)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(self.twice(self.drop(self.norm(self.conv(x)))))


def test_modules_that_were_merged_repeated_or_vanished_are_matched_or_named(tmp_path):
    torch.manual_seed(0)
    net, example = Merges(), {"x": torch.randn(1, 3, 8, 8)}
    result = export_module(net, example, tmp_path / "net.bundle", to=["onnx", "coreml", "executorch"])
    subject = module_subject(net, example, name="net")
    case = subject.cases()[0]
    for artifact in result.manifest.artifacts:
        session = Session.open(result.path, artifact, result.manifest.identity, threads=1)
        found = explain(subject.reference, session, case, lambda: subject, "the eager model")
        assert found.first is None
        assert not any(layer.exceeds for layer in found.layers)
        modules = {layer.module: layer for layer in found.layers}
        assert "drop" not in modules
        assert modules["twice"].note == "last of 2 calls"
        assert "norm" in modules or modules["conv"].note == "with norm"


def test_a_module_without_operations_is_merged_into_the_only_one_it_reads():
    net, x = Merges().eval().requires_grad_(False), np.ones((1, 3, 8, 8), np.float32)
    expected, _ = module_values(
        Reference(net, lambda model, feeds: model(**feeds), (TensorSpec("y", "float32", ()),)), {"x": x}
    )
    assert list(expected) == ["conv", "norm", "drop", "twice"]
    assert expected["drop"].same
    assert expected["norm"].source == "conv"
    assert expected["twice"].calls == 2
    inside = _Inside(expected)
    inside.visit(Traced("fused", "conv", "conv", expected["norm"].value))
    assert _merged(inside) == {"conv": "norm"}
    inside.visit(Traced("batch_norm", "batch_norm", "norm", expected["norm"].value))
    assert _merged(inside) == {}


def test_the_last_operation_of_a_modules_shape_is_its_value_whatever_is_closer():
    expected, _ = module_values(
        Reference(Merges().eval(), lambda model, feeds: model(**feeds), (TensorSpec("y", "float32", ()),)),
        {"x": np.ones((1, 3, 8, 8), np.float32)},
    )
    inside = _Inside(expected)
    right, wrong = expected["conv"].value, expected["conv"].value + 1
    for name, value in (("first", right), ("last", wrong), ("other shape", right[0])):
        inside.visit(Traced(name, "conv", "conv", value))
    assert inside.matches["conv"].name == "last"


class Angles(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.cos(), x.sin()


def test_a_module_of_two_results_that_no_shape_tells_apart_is_left_out():
    net = torch.nn.Sequential(Angles())
    outputs = (TensorSpec("cos", "float32", ()), TensorSpec("sin", "float32", ()))
    reference = Reference(net, lambda model, feeds: model(feeds["x"]), outputs)
    expected, _ = module_values(reference, {"x": np.ones(3, np.float32)})
    assert expected["0"].one_of_several
    inside = _Inside(expected)
    inside.visit(Traced("sin", "sin", "0", np.sin(np.ones(3, np.float32))))
    assert inside.matches == {}


def test_results_shared_by_modules_are_captured_once():
    net = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.ReLU())
    call = Observing(lambda model, inputs: model(inputs["x"]), ["0.0", "0", "1"])
    assert len(call(net, {"x": torch.ones(1, 2)})) == 2
    assert call.places == {"0.0": 1, "0": 1, "1": 0}
