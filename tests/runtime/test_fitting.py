"""Outputs are compared without what is padding, whether or not an artifact is told which tokens are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from palmtop.runtime.fitting import fit_feeds, valid_rows, with_mask
from palmtop.runtime.manifest import Artifact, Dim, TensorSpec, TokenizerSpec

DIMS = (Dim(symbol="batch", min=1), Dim(symbol="sequence", values=(4,)))
ARTIFACT = Artifact(
    target="onnx",
    path="onnx/model.onnx",
    precision="fp32",
    inputs=(TensorSpec("input_ids", "int64", DIMS),),
    outputs=(TensorSpec("logits", "float32", DIMS),),
)
TOKENIZER = TokenizerSpec(
    path="tokenizer",
    kind="wordpiece",
    tokenizer_class="BertTokenizer",
    max_length=4,
    truncation_side="right",
    padding_side="right",
    pad_to_multiple_of=None,
    special_tokens={},
    special_ids={},
    inputs=("input_ids", "attention_mask"),
    input_pad={"input_ids": 0, "attention_mask": 0},
)
FEEDS = {"input_ids": np.array([[5, 6, 7], [5, 0, 0]]), "attention_mask": np.array([[1, 1, 1], [1, 0, 0]])}


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_of_a_model_that_reads_no_mask_end_where_their_text_does(side):
    tokenizer = dataclasses.replace(TOKENIZER, padding_side=side)
    fitted = fit_feeds(FEEDS, ARTIFACT, tokenizer)
    assert list(fitted) == ["input_ids"]
    ids = fitted["input_ids"]
    assert ids.shape == (2, 4)

    rows = valid_rows(ids, ARTIFACT, "logits", with_mask(fitted, FEEDS, tokenizer))

    assert [row.tolist() for row in rows] == [[5, 6, 7], [5]]


def test_without_a_mask_there_is_one_entry_with_the_whole_output():
    feeds = {"input_ids": FEEDS["input_ids"]}
    fitted = fit_feeds(feeds, ARTIFACT, TOKENIZER)

    (whole,) = valid_rows(fitted["input_ids"], ARTIFACT, "logits", with_mask(fitted, feeds, TOKENIZER))

    assert whole.shape == (2, 4)
