"""Results read as objects, as mappings and as JSON."""

import json

import numpy as np
import pytest
from palmtop.runtime.results import Answer, Choice, Entity, Fill, Label, Token, to_plain

ALL = [
    Label("set_alarm", 0.98),
    Token("B-LOC", 0.5, 3, "paris", 4, 9),
    Entity("LOC", 0.5, "paris", 4, 9),
    Answer("Paris", 0.25, 4, 9),
    Fill(0.125, 7, "the", "the end"),
    Choice("hot", 0.75, 1),
]


@pytest.mark.parametrize("result", ALL)
def test_a_result_survives_json(result):
    plain = json.loads(json.dumps(to_plain(result)))
    assert type(result)(**plain) == result


@pytest.mark.parametrize("result", ALL)
def test_a_result_is_a_mapping_of_its_fields(result):
    assert dict(result) == result.to_dict()
    assert result["score"] == result.score
    with pytest.raises(KeyError):
        result["nothing"]


@pytest.mark.parametrize("result", ALL)
def test_a_result_cannot_be_changed(result):
    with pytest.raises(AttributeError):
        result.score = 1.0


def test_a_result_prints_what_matters():
    assert repr(Label("set_alarm", 0.981234567)) == "Label(label='set_alarm', score=0.9812)"


def test_lists_and_arrays_become_plain():
    nested = [[Label("a", 0.5)], np.float32(0.5), np.zeros((1, 2), np.float32)]
    assert to_plain(nested) == [[{"label": "a", "score": 0.5}], 0.5, [[0.0, 0.0]]]
