"""Text classification gives what Transformers gives, whatever the tokenizer, batch or padding."""

import pytest
from palmtop.runtime.errors import DamagedError, RequestError
from palmtop.runtime.manifest import Dim
from palmtop.runtime.results import Label

from ...support.torch_session import torch_pipeline
from .common import KINDS, LONG_TEXT, TEXTS, assert_same, reference

TASK = "text-classification"


@pytest.mark.parametrize("kind", KINDS)
def test_all_labels_of_a_text_are_those_of_transformers(checkpoint, kind):
    folder = checkpoint(kind, TASK)
    ours, theirs = torch_pipeline(folder, TASK), reference(TASK, folder)
    for text in TEXTS:
        assert_same(ours(text), theirs(text, top_k=None))


def test_a_long_text_is_truncated_as_transformers_truncates(checkpoint):
    folder = checkpoint("bert", TASK)
    expected = reference(TASK, folder)(LONG_TEXT, top_k=None, truncation=True, max_length=64)
    assert_same(torch_pipeline(folder, TASK)(LONG_TEXT), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_of_texts_is_classified_as_one(checkpoint, kind):
    folder = checkpoint(kind, TASK)
    pair = {"text": "Where is the book?", "text_pair": "The book is on the table."}
    # transformers returns the labels of a pair in a list of their own when top_k is given
    assert_same(torch_pipeline(folder, TASK)(pair), reference(TASK, folder)(pair, top_k=None))


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_the_function_to_apply_can_be_chosen(checkpoint, function):
    folder = checkpoint("bert", TASK)
    expected = reference(TASK, folder)(TEXTS[0], top_k=None, function_to_apply=function)
    assert_same(torch_pipeline(folder, TASK)(TEXTS[0], function_to_apply=function), expected)


@pytest.mark.parametrize(("problem", "activation"), [("multi_label_classification", "sigmoid"), ("regression", "none")])
def test_the_manifest_says_how_logits_become_scores(checkpoint, problem, activation):
    folder = checkpoint("bert", TASK, config={"problem_type": problem})
    ours = torch_pipeline(folder, TASK, postprocess={"activation": activation})
    assert_same(ours(TEXTS[0]), reference(TASK, folder)(TEXTS[0], top_k=None))


def test_top_k_keeps_the_best(checkpoint):
    pipeline = torch_pipeline(checkpoint("bert", TASK), TASK)
    labels = pipeline(TEXTS[0])
    assert len(labels) == 3
    assert labels == sorted(labels, key=lambda label: -label.score)
    assert pipeline(TEXTS[0], top_k=2) == labels[:2]
    assert pipeline(TEXTS[0], top_k=99) == labels


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_list_gives_a_list_in_its_order_whatever_the_batch(checkpoint, batch_size):
    pipeline = torch_pipeline(checkpoint("roberta", TASK), TASK)
    texts = [*TEXTS, LONG_TEXT, *TEXTS[:3]]
    results = pipeline(texts, batch_size=batch_size)
    assert len(results) == len(texts)
    for text, result in zip(texts, results, strict=True):
        assert_same(result, [label.to_dict() for label in pipeline(text)])


def test_pairs_and_texts_mix_in_a_list(checkpoint):
    pipeline = torch_pipeline(checkpoint("bert", TASK), TASK)
    pair = {"text": "one", "text_pair": "two"}
    first, second = pipeline([pair, "one"])
    assert_same(first, [label.to_dict() for label in pipeline(pair)])
    assert_same(second, [label.to_dict() for label in pipeline("one")])


def test_one_text_in_a_list_gives_a_list_of_one(checkpoint):
    pipeline = torch_pipeline(checkpoint("bert", TASK), TASK)
    assert [len(result) for result in pipeline(["one"])] == [3]
    assert isinstance(pipeline("one")[0], Label)
    assert pipeline([]) == []
    assert pipeline(text for text in ["one", "two"]) == pipeline(["one", "two"])


def test_windows_of_similar_length_share_a_batch(checkpoint):
    pipeline = torch_pipeline(checkpoint("bert", TASK), TASK)
    pipeline(["a", LONG_TEXT, "b", LONG_TEXT, "c", LONG_TEXT], batch_size=3)
    assert pipeline.session.runner.shapes == [(3, 3), (3, 64)]


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        (Dim(size=32), {32}),
        (Dim(symbol="sequence", values=(8, 24)), {8, 24}),
        (Dim(symbol="sequence", min=5, max=20), {5, 20}),
    ],
)
def test_texts_are_padded_or_cut_to_lengths_that_the_artifact_takes(checkpoint, sequence, expected):
    folder = checkpoint("bert", TASK)
    free, bound = torch_pipeline(folder, TASK), torch_pipeline(folder, TASK, sequence=sequence)
    assert_same(bound("a b"), [label.to_dict() for label in free("a b")])
    bound(LONG_TEXT)
    assert {shape[1] for shape in bound.session.runner.shapes} == expected


@pytest.mark.parametrize("batch", [Dim(size=1), Dim(size=4), Dim(symbol="batch", values=(1, 4))])
def test_batches_are_filled_or_split_to_sizes_that_the_artifact_takes(checkpoint, batch):
    folder = checkpoint("bert", TASK)
    free, bound = torch_pipeline(folder, TASK), torch_pipeline(folder, TASK, batch=batch)
    for one, other in zip(bound(list(TEXTS[:6])), free(list(TEXTS[:6])), strict=True):
        assert_same(one, [label.to_dict() for label in other])
    assert all(batch.admits(shape[0]) for shape in bound.session.runner.shapes)


def test_without_an_attention_mask_only_equal_lengths_share_a_batch(checkpoint):
    folder = checkpoint("fnet", TASK)
    ours, theirs = torch_pipeline(folder, TASK), reference(TASK, folder)
    for text, result in zip(TEXTS, ours(list(TEXTS)), strict=True):
        assert_same(result, theirs(text, top_k=None))


@pytest.mark.parametrize(
    "bad", [None, 3, 1.5, b"bytes", {"question": "?"}, {"text": 3}, ["ok", None], ["ok", 3], "\ud800"]
)
def test_what_is_not_text_is_refused(checkpoint, bad):
    with pytest.raises(RequestError):
        torch_pipeline(checkpoint("bert", TASK), TASK)(bad)


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": 1.5}, {"function_to_apply": "relu"}, {"batch_size": 0}])
def test_options_that_make_no_sense_are_refused(checkpoint, options):
    with pytest.raises(RequestError):
        torch_pipeline(checkpoint("bert", TASK), TASK)("text", **options)


def test_a_bundle_without_labels_is_damaged(checkpoint):
    with pytest.raises(DamagedError, match="no labels"):
        torch_pipeline(checkpoint("bert", TASK), TASK, postprocess={"id2label": {}})("text")
