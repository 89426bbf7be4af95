"""What the Core ML target promises: shapes as planned, the model's numbers, the same bytes twice, errors that help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from palmtop.export.targets import Options, get_target
from palmtop.runtime.backends import get_backend
from palmtop.runtime.backends.coreml import INTERPRETER, module_of_operations, package_metadata
from palmtop.runtime.errors import DamagedError, RequestError, UnsupportedError
from palmtop.runtime.manifest import Dim
from palmtop.runtime.mil import Program
from palmtop.runtime.mil.package import Package

from .coreml_models import (
    BATCH,
    IDENTITY,
    LONGEST,
    SEQUENCE,
    Call,
    captured_module,
    captured_text_model,
    distance,
    kinds,
    lowered,
    run,
    text_feeds,
)

TARGET = get_target("coreml")
WIDTH = Dim(size=6)


@pytest.fixture(scope="module")
def bert():
    return captured_text_model("bert", "text-classification", ["logits"])


@pytest.fixture(scope="module")
def packages(bert, tmp_path_factory):
    """Packages of the same model, one for each set of options that tests ask for."""
    made: dict[str, Path] = {}

    def make(**options) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("coreml") / "model.mlpackage"
            lowered(bert[1], made[key], Options(**options))
        return made[key]

    return make


def files_of(package: Path) -> dict[str, bytes]:
    return {
        path.relative_to(package).as_posix(): path.read_bytes() for path in sorted(package.rglob("*")) if path.is_file()
    }


# --- what is planned ------------------------------------------------------------------------------------------------


def test_one_row_and_any_number_of_tokens_is_the_default(bert):
    artifact = TARGET.plan(bert[1], Options())
    assert {spec.dtype for spec in artifact.inputs} == {"int32"}
    for spec in artifact.inputs:
        assert spec.dims == (Dim(size=1), Dim(symbol="sequence", min=1, max=LONGEST))
    assert [(spec.name, spec.dtype) for spec in artifact.outputs] == [("logits", "float32")]


@pytest.mark.parametrize(
    ("options", "dim"),
    [
        (Options(lengths=(16, 8, 16)), Dim(symbol="sequence", values=(8, 16))),
        (Options(lengths=(16,)), Dim(size=16)),
        (Options(dynamic=False), Dim(size=LONGEST)),
        (Options(dynamic=False, lengths=(8, 16)), Dim(size=16)),
    ],
)
def test_lengths_can_be_listed_or_fixed(bert, options, dim):
    assert {spec.dims[1] for spec in TARGET.plan(bert[1], options).inputs} == {dim}


def test_a_length_that_the_model_does_not_take_is_refused(bert):
    with pytest.raises(RequestError, match=f"--lengths {LONGEST + 1}"):
        TARGET.plan(bert[1], Options(lengths=(8, LONGEST + 1)))


def test_a_model_without_attention_runs_on_ios_16_and_one_with_it_from_18(bert):
    plain = captured_module(Call(lambda self, x: torch.relu(x)), (BATCH, SEQUENCE, WIDTH))
    assert TARGET.plan(plain, Options()).minimum_os == {"ios": "16.0", "macos": "13.0"}
    assert TARGET.plan(bert[1], Options()).minimum_os == {"ios": "18.0", "macos": "15.0"}


def test_a_module_to_keep_in_fp32_must_exist(bert):
    with pytest.raises(RequestError, match=r"bert\.encoder\.layer\.0"):
        TARGET.plan(bert[1], Options(precision="fp16", keep_fp32=("bert.encoder.layers.0",)))


@pytest.mark.parametrize("name", ["my output", "1st", "state", "x"])
def test_a_name_that_core_ml_would_change_is_refused(name):
    captured = captured_module(Call(lambda self, x: torch.relu(x)), (BATCH, SEQUENCE, WIDTH), (name,))
    with pytest.raises(RequestError, match=name):
        TARGET.plan(captured, Options())


# --- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "lengths", "bound"),
    [
        ({}, (1, 2, 17, LONGEST), 2e-6),
        ({"precision": "fp16"}, (1, 17, LONGEST), 1e-2),
        ({"lengths": (8, 24)}, (8, 24), 2e-6),
        ({"lengths": (24,)}, (24,), 2e-6),
        ({"dynamic": False}, (LONGEST,), 2e-6),
    ],
)
def test_the_package_computes_what_the_model_computes(bert, packages, options, lengths, bound):
    program = Program.load(packages(**options))
    for length in lengths:
        for row in (0, 1):
            feeds = {name: tensor[row : row + 1] for name, tensor in text_feeds(length, rows=2).items()}
            feeds["attention_mask"][0, 0] = 1
            assert distance(run(program, feeds)["logits"], bert[0](**feeds).logits) < bound


@pytest.mark.parametrize("model_type", ["mpnet", "modernbert", "deberta-v2", "mobilebert"])
def test_attention_of_every_kind_converts(model_type, tmp_path):
    model, captured = captured_text_model(model_type, "text-classification", ["logits"])
    program = lowered(captured, tmp_path / "model.mlpackage")
    for length in (5, LONGEST):
        feeds = text_feeds(length)
        taken = {name: feeds[name] for name in program.inputs}
        assert distance(run(program, feeds)["logits"], model(**taken).logits) < 2e-5


def test_attention_is_one_operation_from_ios_18_on_and_taken_apart_before(bert, packages, tmp_path):
    assert kinds(Program.load(packages())).count("scaled_dot_product_attention") == 2
    older = lowered(bert[1], tmp_path / "model.mlpackage", ios="16.0")
    assert older.opset == "CoreML6"
    assert kinds(older).count("softmax") == 2
    feeds = text_feeds(20)
    assert distance(run(older, feeds)["logits"], bert[0](**feeds).logits) < 2e-6


def test_the_program_is_small_and_computes_no_shapes_it_knows(packages):
    program = Program.load(packages())
    types = kinds(program)
    assert len(types) < 65  # two layers; coremltools alone makes over 100
    assert types.count("shape") <= 1  # of the positions
    assert {"linear", "layer_norm", "gelu"} <= set(types)


def test_listed_lengths_are_described_as_such(packages):
    described = Package(packages(lengths=(8, 24))).spec.description.input
    for feature in described:
        shapes = feature.type.multiArrayType.enumeratedShapes.shapes
        assert [list(shape.shape) for shape in shapes] == [[1, 8], [1, 24]]


def test_inputs_are_int32_and_outputs_fp32_in_fp16_programs_too(packages):
    program = Program.load(packages(precision="fp16"))
    assert {feature.dtype for feature in program.input_features.values()} == {"int32"}
    assert [feature.dtype for feature in program.output_features.values()] == ["fp32"]
    linear = [op for op in program.operations if op.type == "linear"]
    assert {op.outputs[0][1].dtype for op in linear} == {"fp16"}


def test_modules_can_be_kept_in_fp32(packages):
    kept = "bert.encoder.layer.1"
    package = packages(precision="fp16", keep_fp32=(kept,))
    modules = module_of_operations(package)
    linear = [op.outputs[0] for op in Program.load(package).operations if op.type == "linear"]
    assert {kind.dtype for name, kind in linear if modules[name].startswith(kept)} == {"fp32"}
    assert {kind.dtype for name, kind in linear if not modules[name].startswith(kept)} == {"fp16"}


def test_angles_of_far_positions_are_exact_in_fp16_programs(tmp_path):
    """Rotary embeddings: at position 450 an angle in fp16 would be off by up to an eighth of a radian."""

    def rotary(self, x):
        position = torch.arange(x.shape[1])[None, None, :].float()
        angle = (self.frequency[None, :, None] @ position).transpose(1, 2)
        return x * torch.cat([angle.cos(), angle.sin()], -1)

    module = Call(rotary)
    module.register_buffer("frequency", torch.tensor([1.0, 0.73, 0.11]))
    captured = captured_module(module, (BATCH, Dim(symbol="sequence", min=2, max=512), WIDTH))
    program = lowered(captured, tmp_path / "model.mlpackage", Options(precision="fp16"))
    x = torch.randn(1, 450, 6)
    assert distance(run(program, {"x": x})["y"], module(x)) < 2e-3
    assert {op.outputs[0][1].dtype for op in program.operations if op.type == "mul"} == {"fp16"}


def test_buckets_of_relative_positions_are_those_of_the_model_in_fp16_programs(tmp_path):
    """The integer part of a logarithm: in fp16 some distances land in the bucket beside theirs."""

    def bucket(self, x):
        distance = torch.arange(x.shape[1]).clamp(min=4).float()
        return x + (torch.log(distance / 4) / torch.log(torch.tensor(33.0)) * 12).to(torch.long)[None, :, None]

    module = Call(bucket)
    captured = captured_module(module, (BATCH, Dim(symbol="sequence", min=2, max=512), WIDTH))
    program = lowered(captured, tmp_path / "model.mlpackage", Options(precision="fp16"))
    x = torch.zeros(1, 512, 6)
    np.testing.assert_array_equal(run(program, {"x": x})["y"], module(x).numpy())


@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}])
def test_every_value_names_the_module_it_was_computed_in(bert, packages, options):
    package = packages(**options)
    modules = module_of_operations(package)
    known = {name for name, _ in bert[0].named_modules()}
    operations = [op for op in Program.load(package).operations if op.type not in ("const", "cast")]
    named = {name: modules.get(name) for op in operations for name, _ in op.outputs}
    assert set(named.values()) <= known
    linear = [modules[op.outputs[0][0]] for op in operations if op.type == "linear"]
    assert "bert.encoder.layer.1.attention.self.key" in linear
    assert "classifier" in linear


def test_the_identity_is_read_without_coremltools(bert, packages):
    artifact = TARGET.plan(bert[1], Options())
    runner = get_backend("coreml").open(packages(), artifact, None)
    assert runner.identity == IDENTITY
    assert package_metadata(packages())["palmtop.identity"] == IDENTITY
    if sys.platform != "darwin":
        assert runner.engine == INTERPRETER


def test_a_package_that_is_not_there_or_has_other_outputs_is_damaged(bert, packages, tmp_path):
    artifact = TARGET.plan(bert[1], Options())
    with pytest.raises(DamagedError, match="missing"):
        get_backend("coreml").open(tmp_path / "nothing.mlpackage", artifact, None)
    other = tmp_path / "other.mlpackage"
    lowered(captured_module(Call(lambda self, x: torch.relu(x)), (BATCH, SEQUENCE, WIDTH)), other)
    with pytest.raises(DamagedError, match="logits"):
        get_backend("coreml").open(other, artifact, None)


# --- modules of the user's ------------------------------------------------------------------------------------------


def test_a_convolutional_network_with_images_of_several_sizes(tmp_path):
    torch.manual_seed(2)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 12, 3, stride=2),
        torch.nn.SiLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(12, 5),
    )
    network[1].running_mean.normal_()
    network[1].running_var.uniform_(0.5, 2)
    module = Call(lambda self, x: self.network(x), network=network)
    height = Dim(symbol="height", min=6, max=64)
    captured = captured_module(module, (BATCH, Dim(size=3), height, Dim(size=16)))
    program = lowered(captured, tmp_path / "model.mlpackage")
    assert "batch_norm" not in kinds(program)  # it is in the weights of the convolution
    for size in (6, 33, 64):
        image = torch.randn(1, 3, size, 16)
        assert distance(run(program, {"x": image})["y"], module(image)) < 2e-6


def test_outputs_of_every_dtype(tmp_path):
    module = Call(lambda self, x: (x.argmax(-1), x > 0, x.sum(), x.topk(2, -1).values))
    captured = captured_module(module, (BATCH, SEQUENCE, WIDTH), ("best", "positive", "total", "top"))
    artifact = TARGET.plan(captured, Options())
    assert [spec.dtype for spec in artifact.outputs] == ["int32", "int32", "float32", "float32"]
    program = lowered(captured, tmp_path / "model.mlpackage")
    x = torch.randn(1, 9, 6)
    got = run(program, {"x": x})
    for name, expected in zip(("best", "positive", "total", "top"), module(x), strict=True):
        np.testing.assert_allclose(got[name], expected.numpy(), rtol=1e-5)


# --- reproducible ---------------------------------------------------------------------------------------------------


SCRIPT = """
import sys
from pathlib import Path
from palmtop.export.targets import Options
from tests.export.test_coreml import reproducible
reproducible(Path(sys.argv[1]))
"""


def reproducible(package: Path) -> None:
    torch.manual_seed(3)
    layer = torch.nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
    captured = captured_module(Call(lambda self, x: self.layer(x), layer=layer), (BATCH, SEQUENCE, WIDTH))
    lowered(captured, package, Options(precision="fp16"))


def test_the_same_capture_gives_the_same_bytes_in_any_process(tmp_path):
    for name in ("one", "two"):
        reproducible(tmp_path / f"{name}.mlpackage")
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "three.mlpackage"], cwd=root, env=environment, check=True)
    one, two, three = (files_of(tmp_path / f"{name}.mlpackage") for name in ("one", "two", "three"))
    assert one == two
    assert one == three


def test_a_package_holds_no_date_and_no_path(packages):
    for name, content in files_of(packages()).items():
        assert str(packages().parent).encode() not in content, name
    assert set(package_metadata(packages())) == {"palmtop.identity", "palmtop.modules"}


def test_the_manifest_lists_model_and_weights(packages):
    manifest = json.loads((packages() / "Manifest.json").read_text())
    entries = manifest["itemInfoEntries"]
    assert {entry["path"] for entry in entries.values()} == {
        "com.apple.CoreML/model.mlmodel",
        "com.apple.CoreML/weights",
    }
    assert entries[manifest["rootModelIdentifier"]]["name"] == "model.mlmodel"


# --- what cannot be converted ---------------------------------------------------------------------------------------


class Counting(torch.nn.Module):
    def forward(self, x):
        return torch.histc(x, bins=4)


class Bessel(torch.nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x).sum()


def test_everything_unsupported_is_listed_with_module_and_remedy():
    inner = torch.nn.ModuleList([Bessel()])
    module = Call(lambda self, x: self.count(x) + self.inner[0](x), count=Counting(), inner=inner)
    captured = captured_module(module, (BATCH, Dim(size=4), WIDTH))
    found = TARGET.unsupported(captured, TARGET.plan(captured, Options()))
    assert {(entry.operation, entry.module) for entry in found} == {
        ("aten.histc.default", "count"),
        ("aten.special_bessel_j0.default", "inner.0"),
    }
    assert all(entry.remedy for entry in found)


class Large(torch.nn.Module):
    def forward(self, x):
        return ((x > 0).long() * 5_000_000_000).float()


def test_integers_beyond_32_bits_are_refused_not_cut():
    captured = captured_module(Call(lambda self, x: self.large(x), large=Large()), (BATCH, SEQUENCE, WIDTH))
    (found,) = TARGET.unsupported(captured, TARGET.plan(captured, Options()))
    assert found.module == "large"
    assert "32 bits" in found.remedy


class Deep(torch.nn.Module):
    def forward(self, x):
        return (x.reshape(1, 4, 1, 2, 3, 1) + torch.zeros(1, 1, 4, 2, 3, 5)).sum((2, 5))


def test_what_fails_inside_coremltools_names_operation_module_and_remedy(tmp_path):
    captured = captured_module(Call(lambda self, x: self.deep(x), deep=Deep()), (Dim(size=1), Dim(size=4), WIDTH))
    with pytest.raises(UnsupportedError) as caught:
        lowered(captured, tmp_path / "model.mlpackage")
    message = str(caught.value)
    assert "aten." in message
    assert "in deep" in message
    assert "at most five dimensions" in message
