"""The manifest: dataclasses and schema say the same, and nothing that is altered, newer or leads elsewhere is read."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from palmtop.runtime.errors import DamagedError
from palmtop.runtime.manifest import (
    SCHEMA_VERSION,
    Artifact,
    Dim,
    File,
    Manifest,
    ModelSource,
    StateSpec,
    TensorSpec,
    TokenizerSpec,
    canonical_json,
    manifest_schema,
)

SHA = "0123456789abcdef" * 4
FULL = Manifest(
    source=ModelSource("someone/tiny", "v1", SHA, "BertForMaskedLM", "bert", "apache-2.0"),
    task="fill-mask",
    artifacts=(
        Artifact(
            target="coreml",
            path="coreml/model.mlpackage",
            precision="mixed",
            inputs=(
                TensorSpec("input_ids", "int32", (Dim(size=1), Dim(symbol="sequence", values=(32, 128)))),
                TensorSpec("attention_mask", "int32", (Dim(symbol="batch", min=1, max=None), Dim(size=0))),
            ),
            outputs=(TensorSpec("logits", "float32", (Dim(size=1), Dim(symbol="sequence", min=1, max=64))),),
            quantization={"scheme": "int8", "keep": ["embeddings"]},
            minimum_os={"ios": "16.0", "macos": "13.0"},
            states=(StateSpec("keys", "float16", (Dim(size=1), Dim(size=64)), "BHSD"),),
            methods={"prefill": "main", "decode": "step"},
        ),
    ),
    producer={"palmtop": "0.1.0", "torch": "2.13.0"},
    files=(File("golden.jsonl", "golden", 17, SHA), File("coreml/model.mlpackage/x", "artifact", 0, SHA)),
    tokenizer=TokenizerSpec(
        path="tokenizer",
        kind="wordpiece",
        tokenizer_class="BertTokenizer",
        max_length=128,
        truncation_side="right",
        padding_side="left",
        pad_to_multiple_of=8,
        special_tokens={"pad": "[PAD]", "mask": "[MASK]"},
        special_ids={"pad": 0, "mask": 4},
        inputs=("input_ids", "attention_mask"),
        input_pad={"input_ids": 0, "attention_mask": 0},
    ),
    preprocess={"prompts": {"query": "Query: "}, "default_prompt": "query"},
    postprocess={"activation": "softmax", "id2label": {"0": "no", "1": "yes"}, "pooling": None, "normalize": False},
    generation={"max_new_tokens": 10},
    parity={"noise": {"logits": {"max_error": 1e-6, "rms_error": 1e-7}}},
).with_identity()


def resealed(data: dict) -> dict:
    """The data with the identity that fits it."""
    content = {key: value for key, value in data.items() if key not in ("identity", "files", "parity")}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return {**data, "identity": hashlib.sha256(text.encode()).hexdigest()}


def refused(data, says: str) -> None:
    with pytest.raises(DamagedError, match=says):
        Manifest.from_json(data)


# --- schema and dataclasses -----------------------------------------------------------------------------------------


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(manifest_schema())


@pytest.mark.parametrize(
    ("cls", "place"),
    [
        (Manifest, ()),
        (ModelSource, ("properties", "source")),
        (File, ("properties", "files", "items")),
        (Artifact, ("$defs", "artifact")),
        (TensorSpec, ("$defs", "tensor")),
        (StateSpec, ("$defs", "state")),
        (TokenizerSpec, ("$defs", "tokenizer")),
    ],
)
def test_schema_and_dataclass_have_the_same_fields(cls, place):
    schema = manifest_schema()
    for part in place:
        schema = schema[part]
    names = {field.name for field in dataclasses.fields(cls)}
    assert set(schema["properties"]) == names
    assert set(schema["required"]) == names - {"image_inputs"}  # stated where there are some
    assert schema["additionalProperties"] is False


def test_a_manifest_with_every_field_comes_back_as_it_was():
    data = json.loads(FULL.dumps())
    jsonschema.validate(data, manifest_schema(), cls=jsonschema.Draft202012Validator)
    assert Manifest.from_json(data) == FULL
    assert Manifest.from_json(data).dumps() == FULL.dumps()


def test_a_manifest_with_the_least_comes_back_as_it_was():
    artifact = Artifact("onnx", "onnx/model.onnx", "fp32", (), (TensorSpec("output", "float32", ()),))
    least = Manifest(ModelSource("x", None, SHA, "X"), "module", (artifact,), {}).with_identity()
    assert Manifest.from_json(json.loads(least.dumps())) == least


def test_the_text_is_canonical():
    text = FULL.dumps()
    assert text.endswith("}\n")
    assert not text.endswith("\n\n")
    assert text == canonical_json(json.loads(text))
    assert list(json.loads(text)) == sorted(json.loads(text))
    with pytest.raises(ValueError):
        canonical_json({"x": float("nan")})


def test_file_round_trip(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(FULL.dumps(), encoding="utf-8")
    assert Manifest.read(path) == FULL


# --- versions and identity ------------------------------------------------------------------------------------------


def test_a_manifest_for_newer_readers_is_refused_with_the_remedy():
    data = FULL.to_json()
    data["min_reader_version"] = SCHEMA_VERSION + 1
    data["something_new"] = True
    refused(data, f"needs a reader of schema version {SCHEMA_VERSION + 1}.*Upgrade palmtop")


COVERED = [
    ("task", "feature-extraction"),
    ("source", {**FULL.to_json()["source"], "weights_sha256": "f" * 64}),
    ("source", {**FULL.to_json()["source"], "license": None}),
    ("producer", {}),
    ("preprocess", {}),
    ("postprocess", {"activation": "sigmoid"}),
    ("generation", {}),
    ("tokenizer", None),
    ("tokenizer", {**FULL.to_json()["tokenizer"], "special_ids": {"pad": 1, "mask": 4}}),
    ("artifacts", [{**FULL.to_json()["artifacts"][0], "precision": "fp32"}]),
    ("identity", "f" * 64),
]


@pytest.mark.parametrize(("name", "value"), COVERED, ids=[name for name, _ in COVERED])
def test_what_the_identity_covers_cannot_be_altered(name, value):
    refused({**FULL.to_json(), name: value}, "altered")


def test_the_identity_is_known_before_files_and_parity_are():
    bare = dataclasses.replace(FULL, files=(), parity={}, identity="")
    assert bare.compute_identity() == FULL.identity
    assert Manifest.from_json({**FULL.to_json(), "files": [], "parity": {}}).files == ()


def test_any_change_of_an_artifact_changes_the_identity():
    (artifact,) = FULL.artifacts
    changes = [
        {"target": "onnx"},
        {"path": "coreml/other.mlpackage"},
        {"inputs": artifact.inputs[::-1]},
        {"outputs": (dataclasses.replace(artifact.outputs[0], dtype="float16"),)},
        {"quantization": None},
        {"minimum_os": {"ios": "17.0"}},
        {"states": ()},
        {"methods": {"forward": "main"}},
    ]
    others = [dataclasses.replace(FULL, artifacts=(dataclasses.replace(artifact, **change),)) for change in changes]
    assert len({FULL.identity, *(other.compute_identity() for other in others)}) == len(changes) + 1


# --- paths ----------------------------------------------------------------------------------------------------------

ESCAPES = [
    "../x",
    "..",
    ".",
    "",
    "/etc/passwd",
    "a/../../x",
    "a/..",
    "a/./b",
    "./a",
    "a\\b",
    "..\\x",
    "C:/x",
    "C:x",
    "file:x",
    "a\nb",
    "a\n",
    "\na",
    "a\n/../b",
    "a\x00b",
    "a\tb",
    "//server/share",
]


@pytest.mark.parametrize("path", ESCAPES, ids=repr)
@pytest.mark.parametrize("place", ["files", "artifacts", "tokenizer"])
def test_a_path_never_leads_out_of_the_bundle(place, path):
    data = copy.deepcopy(FULL.to_json())
    (data[place] if place == "tokenizer" else data[place][0])["path"] = path
    refused(resealed(data), f"not a valid palmtop manifest.*at {place}/.*path")


@pytest.mark.parametrize("path", ["a", "a/b.c", "..a/b..", "a...b", ".hidden", "a b/ü/日本", "a/.b/c"])
def test_ordinary_paths_are_taken(path):
    data = FULL.to_json()
    data["files"][0]["path"] = path
    assert Manifest.from_json(data).files[0].path == path


# --- what is no manifest --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [None, [], "x", 3, {}, {"schema_version": 1}])
def test_other_json_is_no_manifest(data):
    refused(data, "manifest")


@pytest.mark.parametrize("name", FULL.to_json())
def test_every_field_is_needed(name):
    data = FULL.to_json()
    del data[name]
    refused(data, f"'{name}' is a required property")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("extra",), 1),
        (("source", "extra"), 1),
        (("artifacts",), []),
        (("artifacts", 0, "precision"), "fp7"),
        (("artifacts", 0, "outputs"), []),
        (("artifacts", 0, "inputs", 0, "dtype"), "complex64"),
        (("artifacts", 0, "inputs", 0, "dims", 0), -1),
        (("artifacts", 0, "inputs", 0, "dims", 0), {"symbol": "s"}),
        (("artifacts", 0, "inputs", 0, "dims", 0), {"symbol": "s", "values": []}),
        (("artifacts", 0, "inputs", 0, "dims", 0), {"symbol": "s", "values": [1], "min": 1, "max": 2}),
        (("artifacts", 0, "inputs", 0, "dims", 0), True),
        (("files", 0, "size"), -1),
        (("files", 0, "size"), "17"),
        (("files", 0, "role"), "script"),
        (("files", 0, "sha256"), SHA.upper()),
        (("files", 0, "sha256"), SHA[:-1]),
        (("files", 0, "sha256"), SHA + "\n"),
        (("identity",), "x"),
        (("tokenizer", "padding_side"), "top"),
        (("tokenizer", "max_length"), 0),
        (("postprocess", "activation"), "relu"),
        (("postprocess", "id2label"), {"0": 1}),
        (("task",), ""),
        (("schema_version",), "1"),
        (("min_reader_version",), 0),
    ],
    ids=lambda value: "/".join(map(str, value)) if isinstance(value, tuple) else repr(value)[:20],
)
def test_values_that_the_schema_does_not_allow_are_refused_by_place(place, value):
    data = copy.deepcopy(FULL.to_json())
    inner = data
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    refused(data, "not a valid palmtop manifest")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b'{"a": ' + b"1" * 5000 + b"}", b'{"a": 1} {}'],
    ids=["empty", "cut", "not text", "deep", "NaN", "long number", "two"],
)
def test_a_file_that_is_not_json_is_damage(tmp_path, text):
    path = tmp_path / "manifest.json"
    path.write_bytes(text)
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        Manifest.read(path)


def nested(depth: int) -> str:
    parity: dict = {}
    for _ in range(depth):
        parity = {"a": parity}
    return json.dumps({**FULL.to_json(), "parity": parity})


def test_a_manifest_that_is_nested_too_deep_is_damage(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(nested(20))
    assert Manifest.read(path).parity["a"]
    path.write_text(nested(900))
    with pytest.raises(DamagedError):
        Manifest.read(path)


def test_a_missing_file_is_damage(tmp_path):
    with pytest.raises(DamagedError, match="cannot be read"):
        Manifest.read(tmp_path / "manifest.json")


# --- dims -----------------------------------------------------------------------------------------------------------

SIZES = st.integers(0, 300)
DIMS = st.one_of(
    st.builds(Dim, size=SIZES),
    st.builds(lambda values: Dim(symbol="s", values=tuple(values)), st.lists(SIZES, min_size=1, max_size=5)),
    st.builds(lambda low, extra: Dim(symbol="s", min=low, max=low + extra), SIZES, SIZES),
    st.builds(lambda low: Dim(symbol="s", min=low, max=None), SIZES),
)


@given(DIMS)
def test_a_dim_comes_back_as_it_was(dim):
    assert Dim.from_json(json.loads(json.dumps(dim.to_json()))) == dim


@given(DIMS, SIZES)
def test_a_dim_fits_a_size_to_the_least_that_it_admits(dim, size):
    admitted = [candidate for candidate in range(700) if dim.admits(candidate)]
    assert dim.fit(size) == min((candidate for candidate in admitted if candidate >= size), default=None)


@given(DIMS)
def test_a_constant_dim_admits_one_size_and_the_largest_is_admitted(dim):
    admitted = [candidate for candidate in range(700) if dim.admits(candidate)]
    if dim.is_constant:
        assert admitted == [dim.constant]
    if dim.largest is not None:
        assert admitted[-1] == dim.largest
