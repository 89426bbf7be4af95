"""Token classification gives the tokens, entities and positions that Transformers gives."""

import pytest
from palmtop.runtime.errors import RequestError
from palmtop.runtime.manifest import Dim
from palmtop.runtime.results import Entity, Token

from ...support.torch_session import torch_pipeline
from .common import KINDS, LONG_TEXT, TEXTS, assert_same, reference

TASK = "token-classification"
STRATEGIES = ("none", "simple", "first", "average", "max")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_groups_are_those_of_transformers(checkpoint, kind, strategy):
    folder = checkpoint(kind, TASK)
    ours, theirs = torch_pipeline(folder, TASK), reference(TASK, folder, aggregation_strategy=strategy)
    found = 0
    for text in (*TEXTS, LONG_TEXT):
        result = ours(text, aggregation_strategy=strategy)
        assert_same(result, theirs(text))
        found += len(result)
    assert found > 20


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_is_read_in_windows(checkpoint, kind, strategy):
    folder = checkpoint(kind, TASK)
    theirs = reference(TASK, folder, aggregation_strategy=strategy, stride=8)
    result = torch_pipeline(folder, TASK)(LONG_TEXT, aggregation_strategy=strategy, stride=8)
    assert_same(result, theirs(LONG_TEXT))
    assert result[-1].end > len(LONG_TEXT) * 0.9


def test_windows_follow_the_artifact_when_it_takes_less_than_the_tokenizer(checkpoint):
    folder = checkpoint("bert", TASK)
    bound = torch_pipeline(folder, TASK, sequence=Dim(size=24))
    assert bound(LONG_TEXT, aggregation_strategy="simple", stride=4)[-1].end > len(LONG_TEXT) * 0.9
    assert bound(LONG_TEXT, aggregation_strategy="simple")[-1].end < len(LONG_TEXT) * 0.2


@pytest.mark.parametrize("ignored", [[], ["O", "B-PER"], ["LOC"]])
def test_ignored_labels_are_left_out(checkpoint, ignored):
    folder = checkpoint("bert", TASK)
    for strategy in ("none", "simple"):
        theirs = reference(TASK, folder, aggregation_strategy=strategy, ignore_labels=ignored)
        ours = torch_pipeline(folder, TASK)(TEXTS[1], aggregation_strategy=strategy, ignore_labels=ignored)
        assert_same(ours, theirs(TEXTS[1]))


@pytest.mark.parametrize("labels", [("A", "B", "C"), ("B-X", "I-X"), ("O", "X-1", "I-A-B", "B-A-B")])
def test_labels_outside_the_usual_scheme_group_as_transformers_groups(checkpoint, labels):
    folder = checkpoint("bert", TASK, labels=labels)
    for strategy in STRATEGIES:
        theirs = reference(TASK, folder, aggregation_strategy=strategy)
        assert_same(torch_pipeline(folder, TASK)(TEXTS[1], aggregation_strategy=strategy), theirs(TEXTS[1]))


@pytest.mark.parametrize("strategy", ["none", "simple", "first"])
def test_words_split_beforehand_keep_positions_in_the_joined_text(checkpoint, strategy):
    folder = checkpoint("bert", TASK)
    words = ["Wolfgang", "lives", "in", "München,", "the", "city"]
    theirs = reference(TASK, folder, aggregation_strategy=strategy)
    expected = theirs(words, is_split_into_words=True, delimiter=" ")
    result = torch_pipeline(folder, TASK)(words, is_split_into_words=True, aggregation_strategy=strategy)
    assert_same(result, expected[0] if expected and isinstance(expected[0], list) else expected)
    assert torch_pipeline(folder, TASK)([words], is_split_into_words=True, aggregation_strategy=strategy) == [result]


def test_positions_count_code_points(checkpoint):
    pipeline = torch_pipeline(checkpoint("bert", TASK), TASK)
    text = "🙂🙂 👩‍👩‍👧 Where is it?"
    (where,) = [token for token in pipeline(text, ignore_labels=[]) if token.word == "where"]
    assert text[where.start : where.end] == "Where"


def test_a_list_gives_a_list_in_its_order(checkpoint):
    pipeline = torch_pipeline(checkpoint("xlm-roberta", TASK), TASK)
    texts = [LONG_TEXT, "a", "", LONG_TEXT, *TEXTS]
    results = pipeline(texts, aggregation_strategy="simple", stride=6, batch_size=3)
    for text, result in zip(texts, results, strict=True):
        assert_same(result, [e.to_dict() for e in pipeline(text, aggregation_strategy="simple", stride=6)])


def test_padding_on_the_left_is_cut_off_again(checkpoint):
    folder = checkpoint("roberta", TASK, tokenizer_options={"padding_side": "left"})
    pipeline = torch_pipeline(folder, TASK)
    assert pipeline.tokenizer.spec.padding_side == "left"
    for text, result in zip(TEXTS, pipeline(list(TEXTS)), strict=True):
        assert_same(result, [token.to_dict() for token in pipeline(text)])


def test_results_are_tokens_or_entities(checkpoint):
    pipeline = torch_pipeline(checkpoint("bert", TASK), TASK)
    assert all(isinstance(item, Token) for item in pipeline(TEXTS[1]))
    assert all(isinstance(item, Entity) for item in pipeline(TEXTS[1], aggregation_strategy="max"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"aggregation_strategy": "best"}, "Known: none, simple"),
        ({"stride": 8}, "needs an aggregation_strategy"),
        ({"stride": 62, "aggregation_strategy": "simple"}, "does not fit"),
        ({"stride": -1, "aggregation_strategy": "simple"}, "at least 0"),
        ({"stride": "4", "aggregation_strategy": "simple"}, "at least 0"),
        ({"is_split_into_words": True}, "list of words"),
    ],
)
def test_options_that_do_not_go_together_are_refused(checkpoint, options, reason):
    with pytest.raises(RequestError, match=reason):
        torch_pipeline(checkpoint("bert", TASK), TASK)("text", **options)
