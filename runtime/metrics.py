"""What a task is scored by, in plain numpy: predictions and truths in, a number out.

Nothing here knows of models or files; `evaluation.py` reads data and calls these. All scores lie in 0..1, rank
correlation in -1..1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

# One entity of a sequence of tags: its type, its first tag and the one after its last.
Span = tuple[str, int, int]


def accuracy(predicted: Sequence[Hashable], expected: Sequence[Hashable]) -> float:
    """The share of predictions that equal their truth."""
    _check(predicted, expected)
    return sum(one == other for one, other in zip(predicted, expected, strict=True)) / len(expected)


def f1(true_positives: int, predicted: int, expected: int) -> float:
    """The harmonic mean of precision and recall, from counts; 1 when there was nothing to find and nothing was."""
    if predicted == expected == 0:
        return 1.0
    return 2 * true_positives / (predicted + expected)


def entity_spans(tags: Sequence[str]) -> set[Span]:
    """The entities of a sequence of tags in IOB2, IOB1, IOE or BIOES; tags without a prefix are entities of one class.

    As the CoNLL-2000 evaluation script reads them (and seqeval by default): a change of type ends an entity, and an
    `I-` that nothing began begins one.
    """
    spans: set[Span] = set()
    start, kind, previous = 0, "", "O"
    for index, tag in enumerate([*tags, "O"]):
        prefix, name = _parts(tag)
        if kind and (name != kind or prefix in "BS" or previous in "ES" or prefix == "O"):
            spans.add((kind, start, index))
            kind = ""
        if prefix != "O" and not kind:
            start, kind = index, name
        previous = prefix
    return spans


def _parts(tag: str) -> tuple[str, str]:
    if tag == "O":
        return "O", ""
    prefix, dash, name = tag.partition("-")
    if dash and prefix in ("B", "I", "E", "S", "L", "U"):
        return {"L": "E", "U": "S"}.get(prefix, prefix), name
    return "I", tag  # a scheme without prefixes: neighbours of one class are one entity


def entity_f1(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> float:
    """Micro-averaged F1 over whole entities: one counts when its type, start and end are all right."""
    _check(predicted, expected)
    found = [entity_spans(tags) for tags in predicted]
    truth = [entity_spans(tags) for tags in expected]
    both = sum(len(one & other) for one, other in zip(found, truth, strict=True))
    return f1(both, sum(map(len, found)), sum(map(len, truth)))


def token_accuracy(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> float:
    """The share of tags that are right, over all sequences together."""
    _check(predicted, expected)
    return accuracy(
        [tag for tags in predicted for tag in tags],
        [tag for tags in expected for tag in tags],
    )


def label_set_f1(predicted: Sequence[set[str]], expected: Sequence[set[str]]) -> float:
    """Micro-averaged F1 of sets of labels (multi-label classification)."""
    _check(predicted, expected)
    both = sum(len(one & other) for one, other in zip(predicted, expected, strict=True))
    return f1(both, sum(map(len, predicted)), sum(map(len, expected)))


def normalized_answer(text: str) -> str:
    """An answer as SQuAD compares it: lower case, no punctuation, no English articles, single spaces."""
    lowered = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lowered).split())


def answer_exact(predicted: str, answers: Sequence[str]) -> float:
    """1 when the answer equals one of the right ones, as SQuAD compares them. No right ones: there is no answer."""
    return float(any(normalized_answer(predicted) == normalized_answer(answer) for answer in answers or [""]))


def answer_f1(predicted: str, answers: Sequence[str]) -> float:
    """The best F1 of the answer's words with those of a right one (SQuAD; texts without spaces count as one word)."""
    return max(_word_f1(predicted, answer) for answer in answers or [""])


def _word_f1(predicted: str, answer: str) -> float:
    found, truth = normalized_answer(predicted).split(), normalized_answer(answer).split()
    if not found or not truth:
        return float(found == truth)
    return f1(sum((Counter(found) & Counter(truth)).values()), len(found), len(truth))


def spearman(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Spearman's rank correlation; equal values share their mean rank. NaN when one does not vary, or is not finite."""
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != other.shape or one.ndim != 1 or len(one) < 2:
        raise ValueError(f"two lists of one length, at least 2: {one.shape} and {other.shape}")
    if not np.isfinite([one, other]).all():
        return float("nan")
    ranks = [_ranks(values) - (len(values) + 1) / 2 for values in (one, other)]
    scale = float(np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1]))
    return float(ranks[0] @ ranks[1]) / scale if scale else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 on, the mean rank for values that are equal."""
    _, positions, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[positions]


def _check(predicted: Sequence[object], expected: Sequence[object]) -> None:
    if len(predicted) != len(expected) or not len(expected):
        raise ValueError(f"{len(predicted)} predictions for {len(expected)} truths")
