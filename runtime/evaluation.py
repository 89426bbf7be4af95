"""A task's metric on labelled data, for anything that predicts.

    data = read_data(Path("held-out.jsonl"), bundle.manifest, tokenizer)
    result = evaluate(predictor(pipeline, data), data)  # result.scores["accuracy"], result.decisions

A predictor is a function from inputs to decisions, so an artifact, the eager model and a simulation are scored alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import metrics
from .labelled import Dataset

if TYPE_CHECKING:
    from .pipelines import Pipeline

# Inputs of a task to its decisions, in order: a label, tags, an answer, a token, an index, a score.
Predictor = Callable[[Sequence[Any]], list[Any]]

# Cosines of one pair of texts are the same decision when they differ by no more than this.
SAME_SCORE = 0.01
# Cosines come from whole vectors: this many pairs are embedded together.
_CHUNK = 64


@dataclass(frozen=True)
class Evaluation:
    """The scores by name (the first is the task's own), and the decision of each example."""

    scores: dict[str, float]
    decisions: list[Any]

    @property
    def main(self) -> float:
        """The task's own metric."""
        return next(iter(self.scores.values()))


def evaluate(predict: Predictor, data: Dataset, progress: Callable[[], None] | None = None) -> Evaluation:
    """Score a predictor.

    Args:
        progress: called after each `steps(data)`-th part.
    """
    decisions: list[Any] = []
    for start in range(0, len(data), _CHUNK):
        decisions += predict([example.given for example in data.examples[start : start + _CHUNK]])
        if progress is not None:
            progress()
    return Evaluation(_SCORES[data.kind](decisions, [example.expected for example in data.examples]), decisions)


def steps(data: Dataset) -> int:
    """How many times `evaluate` calls its `progress`."""
    return -(-len(data) // _CHUNK)


def agreement(decisions: Sequence[Any], reference: Sequence[Any]) -> float:
    """The share of decisions that are the reference's own (0..1); scores count as the same within `SAME_SCORE`."""
    same = 0
    for one, other in zip(decisions, reference, strict=True):
        if isinstance(other, float):
            same += abs(one - other) <= SAME_SCORE
        else:
            same += one == other
    return same / len(reference)


def predictor(pipeline: Pipeline, data: Dataset, batch_size: int | None = None) -> Predictor:
    """How a pipeline decides on examples of a dataset of its task."""
    return lambda given: _PREDICTORS[data.kind](pipeline, list(given), batch_size, data)


def _label(pipeline: Any, given: list[Any], batch_size: int | None, _: Dataset) -> list[str]:
    return [labels[0].label for labels in pipeline(given, top_k=1, batch_size=batch_size)]


def _labels(pipeline: Any, given: list[Any], batch_size: int | None, _: Dataset) -> list[frozenset[str]]:
    results = pipeline(given, function_to_apply="sigmoid", batch_size=batch_size)
    return [frozenset(entry.label for entry in labels if entry.score >= 0.5) for labels in results]


def _value(pipeline: Any, given: list[Any], batch_size: int | None, _: Dataset) -> list[float]:
    return [labels[0].score for labels in pipeline(given, function_to_apply="none", batch_size=batch_size)]


def _tags(pipeline: Any, given: list[Any], batch_size: int | None, _: Dataset) -> list[tuple[str, ...]]:
    """A word has the class of its first token; words beyond the longest input have none, which is `O`."""
    results = pipeline(given, is_split_into_words=True, ignore_labels=(), batch_size=batch_size)
    return [tuple(_of_words(words, tokens)) for words, tokens in zip(given, results, strict=True)]


def _of_words(words: list[str], tokens: list[Any]) -> Iterable[str]:
    start, position = 0, 0
    for word in words:
        end = start + len(word)
        while position < len(tokens) and tokens[position].end <= start:
            position += 1
        inside = position < len(tokens) and tokens[position].start < end
        yield tokens[position].entity if inside else "O"
        start = end + 1  # the space between words


def _answer(pipeline: Any, given: list[Any], batch_size: int | None, data: Dataset) -> list[str]:
    unanswerable = any(not example.expected for example in data.examples)
    results = pipeline(given, handle_impossible_answer=unanswerable, batch_size=batch_size)
    return [result.answer for result in results]


def _token(pipeline: Any, given: list[Any], batch_size: int | None, _: Dataset) -> list[str]:
    return [fills[0].token_str.strip() for fills in pipeline(given, top_k=1, batch_size=batch_size)]


def _choice(pipeline: Any, given: list[Any], batch_size: int | None, _: Dataset) -> list[int]:
    results = pipeline(given, batch_size=batch_size)
    return [max(choices, key=lambda choice: choice.score).index for choices in results]


def _cosine(pipeline: Any, given: list[Any], batch_size: int | None, _: Dataset) -> list[float]:
    """Pooling is the model's own where it has one, else the mean of the tokens."""
    options = {"pooling": "mean"} if pipeline.task == "feature-extraction" else {}
    texts = [text for pair in given for text in pair]
    vectors = np.asarray(pipeline(texts, batch_size=batch_size, **options), np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return [float(value) for value in (vectors[0::2] * vectors[1::2]).sum(axis=1)]


_PREDICTORS: dict[str, Callable[[Any, list[Any], int | None, Dataset], list[Any]]] = {
    "text-classification": _label,
    "multi-label": _labels,
    "regression": _value,
    "token-classification": _tags,
    "question-answering": _answer,
    "fill-mask": _token,
    "multiple-choice": _choice,
    "feature-extraction": _cosine,
}

_SCORES: dict[str, Callable[[list[Any], list[Any]], dict[str, float]]] = {
    "text-classification": lambda found, truth: {"accuracy": metrics.accuracy(found, truth)},
    "multi-label": lambda found, truth: {
        "accuracy": metrics.accuracy(found, truth),
        "f1": metrics.label_set_f1(found, truth),
    },
    "regression": lambda found, truth: {"spearman": metrics.spearman(found, truth)},
    "token-classification": lambda found, truth: {
        "token_accuracy": metrics.token_accuracy(found, truth),
        "entity_f1": metrics.entity_f1(found, truth),
    },
    "question-answering": lambda found, truth: {
        "exact_match": float(np.mean(list(map(metrics.answer_exact, found, truth)))),
        "f1": float(np.mean(list(map(metrics.answer_f1, found, truth)))),
    },
    "fill-mask": lambda found, truth: {"top1": metrics.accuracy(found, truth)},
    "multiple-choice": lambda found, truth: {"accuracy": metrics.accuracy(found, truth)},
    "feature-extraction": lambda found, truth: {"spearman": metrics.spearman(found, truth)},
}
