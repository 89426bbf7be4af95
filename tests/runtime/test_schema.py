"""The short check of documents finds what the validator library finds."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from palmtop.runtime.manifest import manifest_schema
from palmtop.runtime.schema import fault

from .test_manifest import FULL

# What takes the place of a part: of every type, in and out of the bounds that schemas state.
OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    1.0,
    1.5,
    10**9,
    "",
    "x",
    "../x",
    "no\nline",
    [],
    [1],
    ["x"],
    {},
    {"x": 1},
)


def places(data: Any, at: tuple = ()) -> Iterator[tuple]:
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        yield (*at, key)
        yield from places(value, (*at, key))


def changed(data: Any) -> Iterator[Any]:
    """The data with one part replaced, left out, or joined by another."""
    for *before, last in places(data):
        for other in OTHERS:
            copied = copy.deepcopy(data)
            inside(copied, before)[last] = other
            yield copied
        copied = copy.deepcopy(data)
        del inside(copied, before)[last]
        yield copied
        if isinstance(inside(data, before), dict):
            copied = copy.deepcopy(data)
            inside(copied, before)["unheard_of"] = 1
            yield copied


def inside(data: Any, keys: list) -> Any:
    for key in keys:
        data = data[key]
    return data


def test_changed_manifests_are_refused_where_the_library_refuses_them():
    library = jsonschema.Draft202012Validator(manifest_schema())
    judged = [
        (library.is_valid(data), fault(manifest_schema(), data) is None) for data in changed(json.loads(FULL.dumps()))
    ]
    assert {theirs for theirs, _ in judged} == {True, False}
    assert all(theirs == ours for theirs, ours in judged)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer"},
        {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        {"const": 1},
        {"enum": [None, 0, "x"]},
        {"enum": [True]},
        {"oneOf": [{"type": "integer"}, {"minimum": 1}]},
        {"type": "array", "minItems": 1, "maxItems": 1, "items": {"type": "string", "minLength": 1}},
        {"pattern": "^x$", "maxLength": 1},
        {"properties": {"x": {"type": "string"}}, "additionalProperties": False},
        {"additionalProperties": {"type": "string"}, "required": ["x"]},
        {"not": {"type": "string"}},  # the short check does not know it
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}},
    ],
)
def test_each_keyword_means_what_it_means_to_the_library(schema):
    library = jsonschema.Draft202012Validator(schema)
    assert [fault(schema, data) is None for data in OTHERS] == [library.is_valid(data) for data in OTHERS]


def test_a_fault_is_said_with_its_place():
    data = json.loads(FULL.dumps())
    data["source"]["id"] = 7
    message, at = fault(manifest_schema(), data) or ("", "")
    assert "not of type 'string'" in message
    assert at == "source/id"


def test_a_valid_manifest_is_read_without_the_library(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(FULL.dumps(), encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from palmtop.runtime.manifest import Manifest; "
        "Manifest.read(Path(sys.argv[1])); print('jsonschema' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
