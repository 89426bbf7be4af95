"""Answers as spans of a context.

Transformers 5 no longer has this pipeline. Answers, scores and positions are those of its last release that had it
(4.57), less the candidates without any probability that it lists when a context has too few others. A score is the
probability of the span's start times that of its end within its window; the scores of spans with the same text are
added, so a text that occurs twice can reach more than 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tokenizers

from ..errors import RequestError
from ..results import Answer
from ..tokenizer import Window
from .base import TextPipeline, listed, whole

_EXPECTED = "a {'question', 'context'} pair"


class QuestionAnswering(TextPipeline):
    """The best spans of a context, in windows when it is long."""

    task = "question-answering"
    outputs = ("start_logits", "end_logits")
    per_token = ("start_logits", "end_logits")

    def __call__(
        self,
        inputs: Any = None,
        *,
        question: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        top_k: int = 1,
        doc_stride: int | None = None,
        max_seq_len: int | None = None,
        max_answer_len: int = 15,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
        batch_size: int | None = None,
    ) -> Any:
        """Answer a question from a context: `qa(question=..., context=...)`, or a list of such pairs.

        Args:
            inputs: `{"question": ..., "context": ...}` or a list of these, instead of the two keywords. Each keyword
                takes a list as well; one context may serve many questions.
            top_k: how many answers; 1 gives an `Answer`, more a list of them, best first.
            doc_stride: how many tokens successive windows of a long context share; default 128, or half a window.
            max_seq_len: longest window in tokens, question included; default 384, or what the model takes.
            max_answer_len: longest answer in tokens.
            handle_impossible_answer: also consider that the context holds no answer (an empty `Answer`).
            align_to_words: widen answers to whole words.

        Raises:
            RequestError: a missing or empty question or context, or lengths that do not fit together.
        """
        items, single = _pairs(inputs, question, context)
        top_k = whole("top_k", top_k) or 1
        max_answer_len = whole("max_answer_len", max_answer_len) or 15
        longest = min(whole("max_seq_len", max_seq_len) or 384, self.max_length)
        whole("doc_stride", doc_stride, least=0)
        # Aligning to words merges candidates, so more are needed.
        candidates = top_k * 2 + 10 if align_to_words else top_k
        windows = [
            window for sample, item in enumerate(items) for window in self._windows(sample, item, longest, doc_stride)
        ]
        part = self._context_part

        def read(outputs: dict[str, np.ndarray], window: Window) -> tuple[float, list[tuple[int, int, float]]]:
            allowed = self._allowed(window.encoding, part)
            start = _probabilities(outputs["start_logits"], allowed)
            end = _probabilities(outputs["end_logits"], allowed)
            none = float(start[0] * end[0])
            start[0] = end[0] = 0.0  # the first token stands for "no answer"
            return none, best_spans(start, end, allowed, candidates, max_answer_len)

        answers: list[list[Answer]] = [[] for _ in items]
        nothing = [1e6] * len(items)
        for window, (none, spans) in zip(windows, self.run_windows(windows, read, batch_size), strict=True):
            text = items[window.sample]["context"]
            nothing[window.sample] = min(nothing[window.sample], none)
            for first_token, last_token, score in spans:
                begin, stop = _characters(window.encoding, first_token, last_token, part, align_to_words)
                _add(answers[window.sample], Answer(text[begin:stop], score, begin, stop))
        results = []
        for found, none in zip(answers, nothing, strict=True):
            if handle_impossible_answer:
                found.append(Answer("", none, 0, 0))
            ranked = sorted(found, key=lambda answer: answer.score, reverse=True)[:top_k]
            # A context without any token (spaces only) holds no span at all.
            results.append(ranked if top_k > 1 else ranked[0] if ranked else Answer("", 0.0, 0, 0))
        return results[0] if single else results

    @property
    def _context_part(self) -> int:
        """Which text of the pair the context is: the second, unless padding comes first."""
        return 1 if self.tokenizer.spec.padding_side == "right" else 0

    def _windows(self, sample: int, item: dict[str, str], longest: int, doc_stride: int | None) -> list[Window]:
        """The windows of a context, each with the whole question; just one when both fit in `longest` tokens."""
        texts = [item["question"], item["context"]] if self._context_part == 1 else [item["context"], item["question"]]
        (all_of_it,) = self.tokenizer.encode([texts[0]], [texts[1]], truncation=None)
        if len(all_of_it) <= longest:
            return [Window(sample, all_of_it.encoding)]
        room = longest - len(all_of_it) + all_of_it.encoding.sequence_ids.count(self._context_part)
        if room < 1:
            raise RequestError(
                f"Input {sample}: the question leaves no room for the context in {longest} tokens. Shorten it."
            )
        windows = self.tokenizer.encode(
            [texts[0]],
            [texts[1]],
            max_length=longest,
            truncation="only_second" if self._context_part == 1 else "only_first",
            stride=min(longest // 2, 128, room - 1) if doc_stride is None else doc_stride,
            overflow=True,
        )
        return [Window(sample, window.encoding) for window in windows]

    def _allowed(self, encoding: tokenizers.Encoding, part: int) -> np.ndarray:
        """(tokens,) bool: tokens of the context, and the one that stands for "no answer"."""
        allowed = np.array([sequence == part for sequence in encoding.sequence_ids], bool)
        cls = self.tokenizer.special_id("cls")
        return allowed if cls is None else allowed | (np.array(encoding.ids) == cls)


def best_spans(
    start: np.ndarray, end: np.ndarray, allowed: np.ndarray, count: int, longest: int
) -> list[tuple[int, int, float]]:
    """The most probable spans (first token, last token, probability), best first; none that is impossible.

    Args:
        start, end: (tokens,) probability of each token to begin and to end the answer.
        allowed: (tokens,) bool, tokens that an answer may begin or end at.
        longest: spans of more tokens are out.
    """
    scores = np.tril(np.triu(np.outer(start, end)), longest - 1)
    flat = scores.ravel()
    if count == 1:
        order = np.array([flat.argmax()])
    elif len(flat) < count:
        order = np.argsort(-flat)
    else:
        top = np.argpartition(-flat, count)[:count] if len(flat) > count else np.arange(count)
        order = top[np.argsort(-flat[top])]
    firsts, lasts = np.unravel_index(order, scores.shape)
    return [
        (int(first), int(last), float(scores[first, last]))
        for first, last in zip(firsts, lasts, strict=True)
        if allowed[first] and allowed[last] and scores[first, last] > 0
    ]


def _probabilities(logits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    masked = np.where(allowed, logits, np.float32(-10000.0))
    shifted = np.exp(masked - masked.max())
    return shifted / shifted.sum()


def _characters(
    encoding: tokenizers.Encoding, first: int, last: int, part: int, align_to_words: bool
) -> tuple[int, int]:
    """Where the tokens `first`..`last` lie in the context, in code points."""
    if align_to_words:
        words = encoding.token_to_word(first), encoding.token_to_word(last)
        if words[0] is not None and words[1] is not None:
            begin = encoding.word_to_chars(words[0], sequence_index=part)
            stop = encoding.word_to_chars(words[1], sequence_index=part)
            if begin is not None and stop is not None:
                return begin[0], stop[1]
    return encoding.offsets[first][0], encoding.offsets[last][1]


def _add(answers: list[Answer], answer: Answer) -> None:
    """Add an answer, or its score to one with the same text."""
    for index, known in enumerate(answers):
        if known.answer.lower() == answer.answer.lower():
            answers[index] = replace(known, score=known.score + answer.score)
            return
    answers.append(answer)


def _pairs(inputs: Any, question: Any, context: Any) -> tuple[list[dict[str, str]], bool]:
    if inputs is None:
        if question is None or context is None:
            raise RequestError("Give both a question and a context: qa(question=..., context=...).")
        questions, one_question = listed(question, (str,), "a question")
        contexts, one_context = listed(context, (str,), "a context")
        if one_context:
            contexts = contexts * len(questions)
        if len(questions) != len(contexts):
            raise RequestError(
                f"{len(questions)} questions and {len(contexts)} contexts: give one context for all, or one each."
            )
        items: list[Any] = [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
        single = one_question
    else:
        items, single = listed(inputs, (dict,), _EXPECTED)
    for index, item in enumerate(items):
        if set(item) != {"question", "context"}:
            raise RequestError(
                f"Input {index}: expected {_EXPECTED}, got the keys {', '.join(map(str, item)) or 'none'}."
            )
        for key, text in item.items():
            if not isinstance(text, str) or not text:
                raise RequestError(f"Input {index}: the {key} must be a text that is not empty, got {repr(text)[:60]}.")
    return items, single
