"""`palmtop verify` finds what is wrong with a bundle, whether or not whoever broke it also mended the hashes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from palmtop.export import export_checkpoint
from palmtop.runtime.bundle import sha256_file
from palmtop.runtime.manifest import MANIFEST_NAME, Manifest


def reseal(bundle: Path) -> None:
    """Make sizes and hashes in the manifest those of the files, as a build step that altered them would."""
    manifest = Manifest.read(bundle / MANIFEST_NAME)
    files = tuple(
        dataclasses.replace(file, size=path.stat().st_size, sha256=sha256_file(path))
        for file in manifest.files
        for path in [bundle / file.path]
    )
    (bundle / MANIFEST_NAME).write_text(dataclasses.replace(manifest, files=files).dumps(), encoding="utf-8")


def edit_onnx(bundle: Path, change: Callable[[onnx.GraphProto], None]) -> None:
    path = bundle / "onnx" / "model.onnx"
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    reseal(bundle)


def test_an_unaltered_bundle_passes(palmtop, bundle):
    ran = palmtop("verify", bundle, "--json")
    assert ran.code == 0
    assert ran.json["passed"]
    assert {entry["target"]: entry["status"] for entry in ran.json["artifacts"]} == {
        "onnx": "passed",
        "coreml": "passed",
        "executorch": "passed",
    }


def test_an_unaltered_bundle_passes_against_the_eager_model(palmtop, bundle, checkpoint):
    ran = palmtop("verify", bundle, "--reference", checkpoint(), "--json")
    assert ran.code == 0
    assert all(entry["cases"] > 8 for entry in ran.json["artifacts"])


@pytest.mark.parametrize("artifact", ["onnx/model.onnx", "executorch/model.pte", "coreml/model.mlpackage"])
def test_one_flipped_byte_in_the_weights_is_damage(palmtop, bundle, artifact):
    path = bundle / artifact
    if path.is_dir():
        path = next(path.rglob("weight.bin"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    ran = palmtop("verify", bundle)
    assert ran.code == 3
    assert "altered" in ran.err


def test_a_changed_weight_with_mended_hashes_fails_parity(palmtop, bundle):
    def change(graph: onnx.GraphProto) -> None:
        weights = [
            tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2
        ]
        changed = numpy_helper.to_array(weights[-1]).copy()
        changed[0, 0] += 0.5
        weights[-1].CopyFrom(numpy_helper.from_array(changed, weights[-1].name))

    edit_onnx(bundle, change)
    ran = palmtop("verify", bundle, "--target", "onnx")
    assert ran.code == 1
    assert "logits" in ran.err
    assert "failed" in ran.err


@pytest.mark.parametrize("with_reference", [False, True])
def test_a_dropped_attention_mask_fails_parity(palmtop, bundle, checkpoint, with_reference):
    def change(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name == "attention_mask":
                    node.input[place] = "all_tokens"
        zero, one = (helper.make_tensor(name, TensorProto.INT64, [], [v]) for name, v in (("zero_", 0), ("one_", 1)))
        graph.initializer.extend([zero, one])
        graph.node.insert(0, helper.make_node("Mul", ["attention_mask", "zero_"], ["no_tokens"]))
        graph.node.insert(1, helper.make_node("Add", ["no_tokens", "one_"], ["all_tokens"]))

    edit_onnx(bundle, change)
    reference = ("--reference", checkpoint()) if with_reference else ()
    ran = palmtop("verify", bundle, "--target", "onnx", *reference)
    assert ran.code == 1
    assert "max error" in ran.err


def test_nan_at_one_length_alone_fails_parity(palmtop, bundle):
    lengths = {
        len(json.loads(line)["encoding"]["input_ids"])
        for line in (bundle / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    }
    poisoned = sorted(lengths)[len(lengths) // 2]

    def change(graph: onnx.GraphProto) -> None:
        output = graph.node[-1].output[0]
        assert output == "logits"
        graph.node[-1].output[0] = "healthy"
        constants = {"length_": poisoned, "index_": 1}
        graph.initializer.extend(helper.make_tensor(k, TensorProto.INT64, [], [v]) for k, v in constants.items())
        graph.initializer.append(helper.make_tensor("nan_", TensorProto.FLOAT, [], [np.nan]))
        graph.node.extend(
            [
                helper.make_node("Shape", ["input_ids"], ["shape_"]),
                helper.make_node("Gather", ["shape_", "index_"], ["size_"]),
                helper.make_node("Equal", ["size_", "length_"], ["poisoned_"]),
                helper.make_node("Where", ["poisoned_", "nan_", "healthy"], ["logits"]),
            ]
        )

    edit_onnx(bundle, change)
    ran = palmtop("verify", bundle, "--target", "onnx")
    assert ran.code == 1
    assert "NaN" in ran.err


def test_a_swapped_vocabulary_is_damage_and_fails_parity_when_resealed(palmtop, bundle):
    path = bundle / "tokenizer" / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = data["model"]["vocab"]
    words = [word for word in vocabulary if word.isalpha()]
    for first, second in zip(words[::2], words[1::2], strict=False):
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    assert palmtop("verify", bundle).code == 3
    reseal(bundle)
    ran = palmtop("verify", bundle, "--target", "onnx")
    assert ran.code == 1
    assert "tokenizer" in ran.err


@pytest.fixture(scope="module")
def other(checkpoint, tmp_path_factory) -> Path:
    """The same architecture with other weights."""
    destination = tmp_path_factory.mktemp("other") / "other.bundle"
    return export_checkpoint(checkpoint(seed=7), destination).path


@pytest.mark.parametrize("folder", ["onnx", "coreml", "executorch"])
def test_an_artifact_swapped_with_another_bundles_is_refused_even_when_resealed(palmtop, bundle, other, folder):
    shutil.rmtree(bundle / folder)
    shutil.copytree(other / folder, bundle / folder)
    assert palmtop("verify", bundle).code == 3
    reseal(bundle)
    ran = palmtop("verify", bundle)
    assert ran.code == 3
    assert "swapped" in ran.err
    ran = palmtop("run", bundle, "wake me up", "--target", folder)
    assert ran.code == 3


def test_two_artifacts_of_one_bundle_swapped_are_refused(palmtop, bundle):
    first, second = bundle / "onnx" / "model.onnx", bundle / "executorch" / "model.pte"
    first.rename(bundle / "aside")
    second.rename(first)
    (bundle / "aside").rename(second)
    assert palmtop("verify", bundle).code == 3
    reseal(bundle)
    assert palmtop("verify", bundle).code == 3


def test_a_manifest_with_other_labels_is_refused(palmtop, bundle):
    path = bundle / MANIFEST_NAME
    path.write_text(path.read_text(encoding="utf-8").replace("set_alarm", "set_alarms"), encoding="utf-8")
    ran = palmtop("run", bundle, "wake me up")
    assert ran.code == 3
    assert "altered" in ran.err


def test_another_checkpoint_as_reference_fails_parity(palmtop, bundle, checkpoint):
    ran = palmtop("verify", bundle, "--reference", checkpoint(seed=7), "--target", "onnx")
    assert ran.code == 1
