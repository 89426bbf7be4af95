"""Beam search: the likeliest sequences, not the likeliest next token, as `model.generate(num_beams=n)` finds them.

Every step looks at all continuations of the running beams, keeps the best that go on, and moves those that end to the
finished ones, which are ranked by their log-probability divided by `length ** length_penalty`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .sampling import Processor, log_softmax, process
from .settings import Settings

# Added to the score of what must not be chosen: finite, so that what is ruled out keeps its order.
_RULED_OUT = np.float32(-1e9)


class Beams(Protocol):
    """What the search needs of a conversation with a decoder."""

    def feed(self, ids: np.ndarray) -> np.ndarray:
        """Logits (rows, V) after some more tokens (rows, S)."""
        ...

    def reorder(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; one may be taken several times."""
        ...


@dataclass(frozen=True)
class Hypothesis:
    """A sequence of new tokens, and its log-probability after the length penalty."""

    ids: tuple[int, ...]
    score: float


@dataclass
class _Ranked:
    """Sequences of new tokens, best first, as parallel arrays."""

    ids: list[tuple[int, ...]]
    scores: np.ndarray
    finished: np.ndarray


def beam_search(
    beams: Beams,
    prompt: np.ndarray,
    settings: Settings,
    steps: Sequence[Processor],
    longest: int,
    random: np.random.Generator | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Hypothesis]:
    """The best `num_return_sequences` continuations of a prompt, best first.

    Args:
        beams: a conversation that has been fed nothing yet.
        prompt: (1, S) ids.
        steps: processors of the scores, which see prompt and new tokens.
        longest: how many tokens a sequence may have, those of the prompt included.
        random: draw the continuations (without replacement) instead of taking the best ones.
        cancelled: asked before each step; what has been found so far is given then.
    """
    count, start = settings.num_beams, prompt.shape[1]
    ends = np.array(settings.eos_token_id, np.int64)
    kept = max(2, 1 + len(ends)) * count
    running = _Ranked([()] * count, np.where(np.arange(count) > 0, _RULED_OUT, np.float32(0)), np.zeros(count, bool))
    done = _Ranked([()] * count, np.full(count, _RULED_OUT), np.zeros(count, bool))
    if longest <= start:
        return [Hypothesis((), 0.0)] * settings.num_return_sequences
    logits = beams.feed(prompt)
    beams.reorder([0] * count)
    logits = np.repeat(logits[:1], count, axis=0)
    improvable = True
    while not cancelled():
        length = start + len(running.ids[0])
        sequences = np.concatenate([np.repeat(prompt, count, axis=0), np.array(running.ids, np.int64)], axis=1)
        scores = process(steps, sequences, log_softmax(logits.astype(np.float32))) + running.scores[:, None]
        best = _drawn(scores.reshape(-1), kept, random) if random is not None else _best(scores.reshape(-1), kept)
        parents, tokens = np.divmod(best, scores.shape[1])
        values = scores.reshape(-1)[best]
        candidates = [(*running.ids[p], int(t)) for p, t in zip(parents, tokens, strict=True)]
        ended = np.isin(tokens, ends) | (length + 1 >= longest)

        unended = values + ended * _RULED_OUT
        onward = _best(unended, count)
        final = _finals(values, ended, length + 1 - start, settings, done, improvable)
        done = _merged(done, candidates, final, ended & (np.arange(kept) < count), count)
        running = _Ranked([candidates[i] for i in onward], unended[onward], ended[onward])

        improvable = improvable and _may_improve(running, done, length + 1, longest, start, settings)
        full = bool(done.finished.all()) and settings.early_stopping is True
        if not improvable or full or ended.all():
            break
        beams.reorder([int(parents[i]) for i in onward])
        logits = beams.feed(np.array([[running.ids[row][-1]] for row in range(count)], np.int64))
    if not done.finished.any():  # cancelled before any sequence ended
        done = running
    return [
        Hypothesis(done.ids[row], float(done.scores[row])) for row in range(min(settings.num_return_sequences, count))
    ]


def _best(values: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` largest values, best first."""
    count = min(count, len(values))
    found = np.sort(np.argpartition(values, len(values) - count)[len(values) - count :])
    return found[np.argsort(-values[found], kind="stable")]


def _drawn(values: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` different positions drawn with the probabilities of the softmax: the best after Gumbel noise."""
    return _best(values + random.gumbel(size=len(values)), count)


def _finals(
    values: np.ndarray, ended: np.ndarray, made: int, settings: Settings, done: _Ranked, improvable: bool
) -> np.ndarray:
    """What continuations score as finished sequences; those that have not ended, or come too late, are ruled out."""
    top = np.arange(len(values)) < settings.num_beams
    full = bool(done.finished.all()) and settings.early_stopping is True
    final = values / np.float32(made**settings.length_penalty)
    return final + (full + (not improvable) + ~(ended & top)).astype(np.float32) * _RULED_OUT


def _merged(
    done: _Ranked, candidates: list[tuple[int, ...]], final: np.ndarray, finished: np.ndarray, count: int
) -> _Ranked:
    scores = np.concatenate([done.scores, final])
    ids, flags = [*done.ids, *candidates], np.concatenate([done.finished, finished])
    chosen = _best(scores, count)
    return _Ranked([ids[i] for i in chosen], scores[chosen], flags[chosen])


def _may_improve(running: _Ranked, done: _Ranked, length: int, longest: int, start: int, settings: Settings) -> bool:
    """Whether the best running beam could still beat the worst finished one."""
    long = settings.early_stopping == "never" and settings.length_penalty > 0
    best = running.scores[0] / np.float32(((longest if long else length) - start) ** settings.length_penalty)
    worst = np.where(done.finished, done.scores.min(), _RULED_OUT)
    return bool((best > worst).any())
