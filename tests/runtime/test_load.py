"""`load` turns a bundle on disk into a pipeline, and says what is wrong when it cannot."""

import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from palmtop.runtime import load
from palmtop.runtime.bundle import sha256_file
from palmtop.runtime.errors import DamagedError, RequestError
from palmtop.runtime.manifest import Artifact, Dim, File, Manifest, ModelSource, TensorSpec

from ..support.torch_session import BATCH, SEQUENCE, tokenizer_spec
from ..support.vocab import build_tokenizer

LABELS = ("sun", "rain", "snow")


def bag_of_words(vocabulary: int, identity: str) -> onnx.ModelProto:
    """A classifier in six nodes: the sum of a row of scores for every token that is not padding."""
    table = np.random.default_rng(0).normal(size=(vocabulary, len(LABELS))).astype(np.float32)
    shape = ["batch", "sequence"]
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
            helper.make_node("Mul", ["rows", "column"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
        ],
        "bag_of_words",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([-1]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"palmtop.identity": identity})
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A whole bundle, its artifact written by hand."""
    root = tmp_path_factory.mktemp("load") / "weather.bundle"
    (root / "onnx").mkdir(parents=True)
    tokenizer = build_tokenizer("bert")
    tokenizer.save_pretrained(root / "tokenizer")
    spec = dataclasses.replace(
        tokenizer_spec(root / "tokenizer"), path="tokenizer", inputs=("input_ids", "attention_mask")
    )
    artifact = Artifact(
        target="onnx",
        path="onnx/model.onnx",
        precision="fp32",
        inputs=tuple(TensorSpec(name, "int64", (BATCH, SEQUENCE)) for name in spec.inputs),
        outputs=(TensorSpec("logits", "float32", (BATCH, Dim(size=3))),),
    )
    manifest = Manifest(
        source=ModelSource("weather", None, "0" * 64, "BagOfWords"),
        task="text-classification",
        artifacts=(artifact,),
        producer={},
        tokenizer=spec,
        postprocess={"activation": "softmax", "id2label": {str(i): label for i, label in enumerate(LABELS)}},
    ).with_identity()
    onnx.save(bag_of_words(len(tokenizer), manifest.identity), root / "onnx" / "model.onnx")
    write(root, manifest)
    return root


@pytest.fixture
def bundle(made, tmp_path):
    """A copy of the bundle, to be damaged."""
    return shutil.copytree(made, tmp_path / made.name)


def write(root, manifest) -> None:
    """Write the manifest, its list of files as they are now."""
    files = tuple(
        File(path.relative_to(root).as_posix(), "artifact" if path.suffix == ".onnx" else "tokenizer", size, sha)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
        for size, sha in [(path.stat().st_size, sha256_file(path))]
    )
    (root / "manifest.json").write_text(dataclasses.replace(manifest, files=files).dumps(), encoding="utf-8")


def change(root, **entries) -> None:
    """Alter the manifest, and the identity everywhere, as a producer could have written it."""
    manifest = dataclasses.replace(Manifest.read(root / "manifest.json"), **entries).with_identity()
    model = onnx.load(root / "onnx" / "model.onnx")
    helper.set_model_props(model, {"palmtop.identity": manifest.identity})
    onnx.save(model, root / "onnx" / "model.onnx")
    write(root, manifest)


def test_two_lines_give_labels(bundle):
    labels = load(bundle)("Is it raining?")
    assert sorted(label.label for label in labels) == sorted(LABELS)
    assert sum(label.score for label in labels) == pytest.approx(1.0)


def test_the_answer_does_not_depend_on_batch_threads_or_target(bundle):
    texts = ["Is it raining?", "", "It was raining yesterday, and the day before."]
    expected = [load(bundle)(text) for text in texts]
    together = load(str(bundle), target="onnx", threads=1)(texts)
    for one, other in zip(together, expected, strict=True):
        assert [label.label for label in one] == [label.label for label in other]
        assert [label.score for label in one] == pytest.approx([label.score for label in other], abs=1e-6)


def test_a_pipeline_says_what_it_runs_on(bundle):
    assert "text-classification pipeline: onnx/model.onnx on ONNX Runtime" in repr(load(bundle))


@pytest.mark.parametrize("path", ["nowhere.bundle", "tokenizer"])
def test_what_is_not_a_bundle_is_refused(bundle, path):
    with pytest.raises(RequestError):
        load(bundle / path)


def test_a_target_that_the_bundle_has_not_is_refused_with_those_it_has(bundle):
    with pytest.raises(RequestError, match="It has: onnx"):
        load(bundle, target="coreml")


def test_a_task_without_a_pipeline_is_refused_with_the_known_ones(bundle):
    change(bundle, task="weather-forecast")
    with pytest.raises(RequestError, match=r"'weather-forecast'\. Known: text-classification, "):
        load(bundle)


def test_a_text_task_without_a_tokenizer_is_damage(bundle):
    change(bundle, tokenizer=None)
    with pytest.raises(DamagedError, match="needs a tokenizer"):
        load(bundle)


def test_an_artifact_without_the_output_of_its_task_is_damage(bundle):
    change(bundle, task="question-answering")
    with pytest.raises(DamagedError, match="no output start_logits, end_logits"):
        load(bundle)


def test_a_swapped_vocabulary_is_refused(bundle):
    path = bundle / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    first, second = "the", "is"
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DamagedError, match=r"tokenizer\.json"):
        load(bundle)


def test_an_altered_manifest_is_refused(bundle):
    path = bundle / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"sun"', '"fog"'), encoding="utf-8")
    with pytest.raises(DamagedError, match="altered"):
        load(bundle)


def test_the_model_of_another_bundle_is_refused(bundle):
    onnx.save(bag_of_words(416, "f" * 64), bundle / "onnx" / "model.onnx")
    write(bundle, Manifest.read(bundle / "manifest.json"))
    with pytest.raises(DamagedError, match="identity"):
        load(bundle)
