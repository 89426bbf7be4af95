"""Schemes and plans say what they mean, come back from JSON as they were, and refuse what does not exist."""

from __future__ import annotations

import json

import pytest
from palmtop.quantize.scheme import PRESETS, Plan, Scheme
from palmtop.runtime.errors import RequestError

SCHEMES = (
    Scheme(8),
    Scheme(8, "tensor", activations="static"),
    Scheme(8, "block", 128, symmetric=False),
    Scheme(4, "block", 32, activations="dynamic"),
    Scheme(6, "tensor", form="palette"),
    Scheme(2, "block", 8, form="palette"),
)
PLAN = Plan({f"layer.{number}.weight": scheme for number, scheme in enumerate(SCHEMES)}, 0.5, "nearest")


def test_a_plan_comes_back_from_its_file(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(PLAN.dumps(), encoding="utf-8")
    assert Plan.read(path) == PLAN


def test_the_file_holds_only_what_differs_from_the_usual_and_is_in_order():
    document = json.loads(PLAN.replace({"a.weight": Scheme(4)}).dumps())
    assert document["weights"]["a.weight"] == {"bits": 4}
    assert list(document["weights"]) == sorted(document["weights"])
    assert document["weights"]["layer.3.weight"] == {
        "bits": 4,
        "granularity": "block",
        "block": 32,
        "activations": "dynamic",
    }


def test_schemes_read_like_words():
    assert list(map(str, SCHEMES)) == [
        "int8 per channel",
        "int8 per tensor, static activations",
        "int8 per block of 128, asymmetric",
        "int4 per block of 32, dynamic activations",
        "palette6 per tensor",
        "palette2 per block of 8",
    ]


def test_replacing_a_scheme_by_none_leaves_the_weight_as_it_is():
    changed = PLAN.replace({"layer.0.weight": None, "layer.1.weight": Scheme(4)})
    assert "layer.0.weight" not in changed.weights
    assert changed.weights["layer.1.weight"] == Scheme(4)
    assert (changed.smoothing, changed.rounding) == (PLAN.smoothing, PLAN.rounding)
    assert "layer.0.weight" in PLAN.weights


@pytest.mark.parametrize(
    ("schemes", "precision"),
    [
        ([Scheme(8), Scheme(8, "block", 32)], "int8"),
        ([Scheme(4)], "int4"),
        ([Scheme(6, form="palette")], "int6"),
        ([Scheme(2, form="palette")], "mixed"),
        ([Scheme(8), Scheme(4)], "mixed"),
        ([], "mixed"),
    ],
)
def test_the_precision_of_a_plan(schemes, precision):
    assert Plan({str(place): scheme for place, scheme in enumerate(schemes)}).precision == precision


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bits": 3}, "bits is one of 8, 6, 4, 2, not 3"),
        ({"bits": "8"}, "bits is one of"),
        ({"bits": 8.0}, "bits is one of"),
        ({"bits": 8, "granularity": "row"}, "granularity is one of tensor, channel, block, not 'row'"),
        ({"bits": 8, "granularity": "block"}, "block size when, and only when"),
        ({"bits": 8, "block": 32}, "block size when, and only when"),
        ({"bits": 8, "granularity": "block", "block": 0}, "positive number of weights, not 0"),
        ({"bits": 8, "granularity": "block", "block": 32.0}, "positive number of weights"),
        ({"bits": 8, "granularity": "block", "block": "32"}, "positive number of weights"),
        ({"bits": 8, "symmetric": "no"}, "symmetric is one of"),
        ({"bits": 6}, "6 bits exist as a palette only"),
        ({"bits": 4, "form": "float"}, "form is one of linear, palette"),
        ({"bits": 4, "form": "palette", "symmetric": False}, "A palette has no zero points"),
        ({"bits": 8, "activations": "int16"}, "activations is one of"),
    ],
)
def test_schemes_that_do_not_exist_are_refused(fields, said):
    with pytest.raises(RequestError, match=said):
        Scheme(**fields)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "JSON object"),
        ({"plan_version": 1}, "JSON object"),
        ({"plan_version": 1, "weights": []}, "JSON object"),
        ({"plan_version": 2, "weights": {}}, "version 1, not 2"),
        ({"weights": {}}, "version 1, not None"),
        ({"plan_version": 1, "weights": {}, "smoothness": 1}, "no field smoothness"),
        ({"plan_version": 1, "weights": {"w": {"bits": 8, "blok": 3}}}, "w: .*blok"),
        ({"plan_version": 1, "weights": {"w": {}}}, "w: .*bits"),
        ({"plan_version": 1, "weights": {"w": 8}}, "w: .*cannot be read"),
        ({"plan_version": 1, "weights": {"w": {"bits": 5}}}, "w: .*bits is one of"),
        ({"plan_version": 1, "weights": {}, "rounding": "up"}, "one of nearest, gptq, not 'up'"),
        ({"plan_version": 1, "weights": {}, "smoothing": 1.5}, "between 0 and 1, not 1.5"),
        ({"plan_version": 1, "weights": {}, "smoothing": "some"}, "between 0 and 1, not 'some'"),
    ],
)
def test_what_is_no_plan_is_refused_and_says_why(document, said):
    with pytest.raises(RequestError, match=said):
        Plan.from_json(document)


def test_files_that_are_no_plan(tmp_path):
    with pytest.raises(RequestError, match="Cannot read the plan"):
        Plan.read(tmp_path / "missing.json")
    (tmp_path / "plan.json").write_text("{", encoding="utf-8")
    with pytest.raises(RequestError, match="is not JSON"):
        Plan.read(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="is not JSON"):
        Plan.read(tmp_path / "plan.json")


def test_presets_round_embeddings_in_blocks_and_layers_with_their_inputs():
    for preset in PRESETS.values():
        assert preset.embedding.granularity == "block"
        assert preset.layer.activations == "dynamic"
        assert preset.layer.symmetric  # what integer kernels take
