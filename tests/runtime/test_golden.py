"""Golden vectors come back as they were written, sample every column of an output, and a damaged line is named."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from palmtop.runtime.errors import DamagedError
from palmtop.runtime.golden import Expected, GoldenCase, read_golden, write_golden

TEXT = GoldenCase(
    name="accents",
    encoding={"input_ids": np.array([2, 7, 3]), "attention_mask": np.array([1, 1, 1])},
    outputs={"logits": Expected.of(np.array([0.1, -3.4e38, 1e-45], np.float32))},
    text='é \u2028\u0085\x00\r\n"\\ 😍',
    options={"max_length": 8, "truncation": "longest_first", "pad_to": 3},
    offsets=[[0, 0], [0, 1], [0, 0]],
)
PAIR = GoldenCase(
    name="pair",
    encoding={"input_ids": np.array([2, 3])},
    outputs={"logits": Expected.of(np.array([[1.0, np.nan], [np.inf, -np.inf]], np.float32))},
    text="",
    text_pair="b",
    options={"max_length": 8, "truncation": "only_second"},
    offsets=[[0, 0], [0, 0]],
)
CHOICES = GoldenCase(
    name="choices",
    encoding={"input_ids": np.array([[2, 5, 3], [2, 3, 0]])},
    outputs={"logits": Expected.of(np.array([0.5, -0.5], np.float32))},
    text="which",
    choices=("one", "two"),
    options={"max_length": 8, "truncation": "longest_first"},
    offsets=[[[0, 0], [0, 5], [0, 0]], [[0, 0], [0, 0], [0, 0]]],
)
TENSORS = GoldenCase(
    name="tensors",
    encoding={
        "image": np.arange(6, dtype=np.float32).reshape(1, 2, 3) / 7,
        "half": np.array([1.5, np.nan, np.inf], np.float16),
        "mask": np.array([True, False]),
        "ids": np.array([-1, 2**40], np.int64),
    },
    outputs={"found": Expected.of(np.array([True, False])), "count": Expected.of(np.array(7, np.int32))},
)
ALL = [TEXT, PAIR, CHOICES, TENSORS]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "golden.jsonl"


def assert_same(actual: GoldenCase, expected: GoldenCase) -> None:
    for name in ("name", "text", "text_pair", "choices", "options", "offsets"):
        assert getattr(actual, name) == getattr(expected, name)
    assert list(actual.encoding) == sorted(expected.encoding)
    for name, array in expected.encoding.items():
        np.testing.assert_array_equal(actual.encoding[name], array)
        assert actual.encoding[name].dtype == array.dtype
    for name, output in expected.outputs.items():
        assert (actual.outputs[name].shape, actual.outputs[name].every) == (output.shape, output.every)
        np.testing.assert_array_equal(actual.outputs[name].values.astype(output.values.dtype), output.values)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_a_case_comes_back_as_it_was(path, case):
    write_golden(path, [case])
    (found,) = read_golden(path)
    assert_same(found, case)


def test_all_cases_come_back_in_their_order_one_a_line(path):
    write_golden(path, ALL)
    assert [case.name for case in read_golden(path)] == [case.name for case in ALL]
    assert path.read_bytes().count(b"\n") == len(ALL)
    for line in path.read_bytes().split(b"\n")[:-1]:
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_same_cases_give_the_same_bytes(path, tmp_path):
    write_golden(path, ALL)
    write_golden(tmp_path / "again", ALL)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_what_is_not_finite_is_written_as_text(path):
    write_golden(path, [PAIR])
    assert json.loads(path.read_text())["outputs"]["logits"]["values"] == [1.0, "nan", "inf", "-inf"]


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_every_fp32_value_comes_back_to_the_bit(values):
    array = np.array(values, np.float32)
    case = GoldenCase("x", {"x": array}, {"y": Expected.of(array)})
    found = GoldenCase.from_json(json.loads(json.dumps(case.to_json(), allow_nan=False)))
    np.testing.assert_array_equal(found.outputs["y"].values.astype(np.float32), array)
    np.testing.assert_array_equal(np.signbit(found.outputs["y"].values[array == 0]), np.signbit(array[array == 0]))


def test_feeds_of_text_have_a_batch_axis_and_tensors_are_as_they_are():
    assert TEXT.feeds()["input_ids"].shape == (1, 3)
    assert CHOICES.feeds()["input_ids"].shape == (1, 2, 3)
    assert TENSORS.feeds()["image"].shape == (1, 2, 3)


# --- sampling -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 60), min_size=1, max_size=3), st.integers(1, 512))
def test_a_sample_visits_every_column_and_no_more_than_was_asked_for(shape, most):
    array = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    expected = Expected.of(array, most)
    assert expected.shape == tuple(shape)
    np.testing.assert_array_equal(expected.pick(array), expected.values)
    assert len(expected.values) <= most
    columns = {int(value) % shape[-1] for value in expected.values}
    assert len(columns) == min(shape[-1], len(expected.values))


def test_a_small_output_is_recorded_whole():
    assert Expected.of(np.zeros((2, 256), np.float32)).every == 1
    assert Expected.of(np.zeros((2, 257), np.float32)).every > 1
    assert Expected.of(np.zeros((9, 999), np.float32), most=None).every == 1


# --- damage ---------------------------------------------------------------------------------------------------------


def changed(**changes) -> bytes:
    return json.dumps({**TEXT.to_json(), **changes}).encode()


def output(**changes) -> bytes:
    entry = {"shape": [3], "every": 1, "values": [1, 2, 3], **changes}
    return changed(outputs={"logits": entry})


def tensor(**changes) -> bytes:
    entry = {"dtype": "float32", "shape": [2], "base64": base64.b64encode(bytes(8)).decode(), **changes}
    return json.dumps({"name": "x", "inputs": {"x": entry}, "outputs": {}}).encode()


DAMAGED = {
    "not JSON": b"{",
    "not text": b"\xff\xfe",
    "a list": b"[]",
    "a number": b"7",
    "empty": b"{}",
    "deep": b"[" * 100_000,
    "no name": json.dumps({key: value for key, value in TEXT.to_json().items() if key != "name"}).encode(),
    "text is a number": changed(text=7),
    "no options": changed(options={}),
    "outputs are a list": changed(outputs=[]),
    "ids are text": changed(encoding={"input_ids": ["a"], "offsets": [[0, 0]]}),
    "ids too large": changed(encoding={"input_ids": [2**70], "offsets": [[0, 0]]}),
    "lengths differ": changed(encoding={"input_ids": [1, 2], "offsets": [[0, 0]]}),
    "masks differ": changed(encoding={"input_ids": [1], "attention_mask": [1, 1], "offsets": [[0, 0]]}),
    "no offsets": changed(encoding={"input_ids": [1]}),
    "values are text": output(values=["many"] * 3),
    "too few values": output(values=[1, 2]),
    "too many values": output(values=[1, 2, 3, 4]),
    "every nothing": output(every=0),
    "every backwards": output(every=-1),
    "a negative axis": output(shape=[-3]),
    "an object in a tensor": tensor(dtype="object"),
    "an unknown dtype": tensor(dtype="float33"),
    "not base64": tensor(base64="!"),
    "bytes too few": tensor(base64="AAAA"),
    "another shape": tensor(shape=[3]),
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_named(path, line):
    write_golden(path, [TEXT, PAIR])
    good = path.read_bytes()
    path.write_bytes(good + line + b"\n" + good)
    with pytest.raises(DamagedError) as caught:
        read_golden(path)
    assert "golden.jsonl" in str(caught.value)
    assert "line 3" in str(caught.value) or line == DAMAGED["not text"]
    assert len(str(caught.value)) < 500


def test_a_file_without_cases_is_damage(path):
    path.write_text("\n")
    with pytest.raises(DamagedError, match="holds no golden vectors"):
        read_golden(path)


def test_a_missing_file_is_damage(path):
    with pytest.raises(DamagedError, match="cannot be read"):
        read_golden(path)
