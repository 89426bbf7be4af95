"""Metrics against values worked out by hand."""

import math

import pytest
from palmtop.runtime import metrics


def test_accuracy_is_the_share_that_is_right():
    assert metrics.accuracy(["a", "b", "c", "a"], ["a", "b", "b", "a"]) == 0.75


@pytest.mark.parametrize("measure", [metrics.accuracy, metrics.entity_f1, metrics.token_accuracy, metrics.label_set_f1])
def test_nothing_to_score_and_lists_that_do_not_fit_are_refused(measure):
    with pytest.raises(ValueError, match="0 predictions"):
        measure([], [])
    with pytest.raises(ValueError, match="1 predictions for 2"):
        measure(["a"], ["a", "b"])


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        (["O", "B-PER", "I-PER", "O", "B-LOC"], {("PER", 1, 3), ("LOC", 4, 5)}),
        (["B-PER", "B-PER"], {("PER", 0, 1), ("PER", 1, 2)}),
        (["I-PER", "I-LOC", "I-LOC"], {("PER", 0, 1), ("LOC", 1, 3)}),  # IOB1: nothing began them
        (["B-PER", "O", "I-PER"], {("PER", 0, 1), ("PER", 2, 3)}),
        (["B-PER", "E-PER", "S-PER", "S-PER"], {("PER", 0, 2), ("PER", 2, 3), ("PER", 3, 4)}),
        (["B-PER", "L-PER", "I-PER", "U-LOC"], {("PER", 0, 2), ("PER", 2, 3), ("LOC", 3, 4)}),
        (["name", "name", "O", "place"], {("name", 0, 2), ("place", 3, 4)}),
        (["B-ORG-SUB", "I-ORG-SUB"], {("ORG-SUB", 0, 2)}),
        (["O", "O"], set()),
        ([], set()),
    ],
)
def test_entities_of_tags(tags, spans):
    assert metrics.entity_spans(tags) == spans


def test_an_entity_counts_when_type_and_both_ends_are_right():
    expected = [["B-PER", "I-PER", "O"], ["B-LOC", "O", "B-PER"]]
    predicted = [["B-PER", "O", "O"], ["B-LOC", "O", "B-PER"]]
    # 3 found, 3 there, 2 in both; 5 of 6 tags.
    assert metrics.entity_f1(predicted, expected) == pytest.approx(2 / 3)
    assert metrics.token_accuracy(predicted, expected) == pytest.approx(5 / 6)


def test_finding_nothing_where_nothing_is_is_right_and_anything_else_is_not():
    assert metrics.entity_f1([["O"]], [["O"]]) == 1.0
    assert metrics.entity_f1([["B-PER"]], [["O"]]) == 0.0
    assert metrics.entity_f1([["O"]], [["B-PER"]]) == 0.0


def test_label_sets():
    # 3 predicted, 3 true, 2 in both.
    assert metrics.label_set_f1([{"a", "b"}, {"c"}], [{"a"}, {"c", "d"}]) == pytest.approx(2 / 3)


def test_answers_are_compared_as_squad_does():
    assert metrics.normalized_answer("  The  U.S. Army, an arm!") == "us army arm"
    assert metrics.answer_exact("the Eiffel Tower.", ["Paris", "Eiffel tower"]) == 1.0
    assert metrics.answer_exact("Eiffel", ["Eiffel tower"]) == 0.0
    # 1 word of 1 and of 2: precision 1, recall 1/2. "the" does not count.
    assert metrics.answer_f1("the Eiffel", ["Paris", "Eiffel tower"]) == pytest.approx(2 / 3)
    # Words count as often as they occur: 2 in both, 3 and 2.
    assert metrics.answer_f1("very very good", ["very good"]) == pytest.approx(0.8)


def test_a_question_without_answer_is_answered_by_nothing():
    assert metrics.answer_exact("", []) == metrics.answer_f1("", []) == 1.0
    assert metrics.answer_exact("Paris", []) == metrics.answer_f1("Paris", []) == 0.0
    assert metrics.answer_f1("", ["Paris"]) == 0.0


def test_spearman_by_hand():
    # Ranks 1 2 3 4 5 and 2 1 4 3 5: 1 - 6 * (1+1+1+1+0) / (5 * 24) = 0.8
    assert metrics.spearman([10, 20, 30, 40, 50], [0.2, 0.1, 0.4, 0.3, 0.5]) == pytest.approx(0.8)
    assert metrics.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ties: ranks 1 2.5 2.5 4 with 1 2 3 4: covariance 4.5, variances 4.5 and 5.
    assert metrics.spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_spearman_without_variation_is_not_a_number():
    assert math.isnan(metrics.spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(metrics.spearman([1, 2, math.nan], [1, 2, 3]))
    with pytest.raises(ValueError, match="one length"):
        metrics.spearman([1, 2], [1, 2, 3])
