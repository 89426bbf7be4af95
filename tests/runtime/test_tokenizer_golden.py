"""Golden vectors of tokenizers: written and read the same, with offsets in code points and in UTF-16 units."""

from __future__ import annotations

import dataclasses
import json

import pytest
from palmtop.runtime.errors import DamagedError
from palmtop.runtime.tokenizer_golden import (
    TokenizerCase,
    read_tokenizer_golden,
    utf16_offsets,
    write_tokenizer_golden,
)

CASE = TokenizerCase(
    name="emoji",
    text="🙂 \u2028é",
    text_pair=None,
    add_special_tokens=True,
    truncation={"max_length": 8, "side": "left", "strategy": "longest_first"},
    padding=None,
    ids=[1, 5, 2],
    attention_mask=[1, 1, 1],
    type_ids=[0, 0, 0],
    special_tokens_mask=[1, 0, 1],
    offsets=[[0, 0], [0, 1], [0, 0]],
    offsets_utf16=[[0, 0], [0, 2], [0, 0]],
    decoded="<s>🙂</s>",
    decoded_without_special="🙂",
)


def test_cases_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "golden.jsonl"
    cases = [CASE, dataclasses.replace(CASE, name="pair", text_pair="b\r\n", truncation=None)]
    write_tokenizer_golden(path, cases)
    assert read_tokenizer_golden(path) == cases
    assert len(path.read_bytes().split(b"\n")) == 3


@pytest.mark.parametrize("line", ["{}", "[1]", "no json", json.dumps({**dataclasses.asdict(CASE), "more": 1})])
def test_a_line_that_is_no_vector_is_named(tmp_path, line):
    path = tmp_path / "golden.jsonl"
    write_tokenizer_golden(path, [CASE])
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(DamagedError, match=r"golden\.jsonl, line 2"):
        read_tokenizer_golden(path)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(DamagedError, match=r"golden\.jsonl cannot be read"):
        read_tokenizer_golden(tmp_path / "golden.jsonl")


def test_utf16_offsets_count_characters_beyond_the_first_plane_twice():
    text, pair = "a🙂b👩‍👧", "𝒳y"
    offsets = [[0, 0], [0, 1], [1, 2], [2, 3], [3, 6], [0, 1], [1, 2]]
    sequences = [None, 0, 0, 0, 0, 1, 1]
    found = utf16_offsets(text, pair, offsets, sequences)
    assert found == [[0, 0], [0, 1], [1, 3], [3, 4], [4, 9], [0, 2], [2, 3]]
    units = text.encode("utf-16-le")
    for (begin, end), (first, last), sequence in zip(offsets, found, sequences, strict=True):
        if sequence == 0:
            assert units[2 * first : 2 * last].decode("utf-16-le") == text[begin:end]
