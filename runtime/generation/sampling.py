"""From a model's logits to the scores that tokens are chosen by, and the choice itself.

A processor takes the ids so far (rows, S) and scores (rows, V) in float32 and gives scores of the same shape; it never
writes into what it was given. Their meaning and order are those of the logits processors of Transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .settings import Settings

Processor = Callable[[np.ndarray, np.ndarray], np.ndarray]
_NEVER = np.float32(-np.inf)


def processors(
    settings: Settings,
    prompt_length: int,
    longest: int,
    encoder_ids: np.ndarray | None = None,
    extra: Sequence[Processor] = (),
) -> list[Processor]:
    """The processors that settings ask for, in their order.

    Args:
        prompt_length: how many tokens the decoder starts with.
        longest: how many it may hold at the end (`Settings.longest`).
        encoder_ids: (rows, S) what the encoder of an encoder-decoder read.
        extra: the caller's own; they come before those that only sampling has.
    """
    eos = settings.eos_token_id
    found: list[Processor] = []
    if settings.sequence_bias:
        found.append(biased(settings.sequence_bias))
    if settings.encoder_repetition_penalty != 1.0 and encoder_ids is not None:
        found.append(encoder_repetition(settings.encoder_repetition_penalty, encoder_ids))
    if settings.repetition_penalty != 1.0:
        found.append(repetition(settings.repetition_penalty))
    if settings.no_repeat_ngram_size:
        found.append(no_repeat_ngram(settings.no_repeat_ngram_size))
    if settings.encoder_no_repeat_ngram_size and encoder_ids is not None:
        found.append(encoder_no_repeat_ngram(settings.encoder_no_repeat_ngram_size, encoder_ids))
    if settings.bad_words_ids:
        found.append(bad_words(settings.bad_words_ids, eos))
    if settings.min_new_tokens is None and settings.min_length and eos:
        found.append(shortest(settings.min_length, eos))
    if settings.min_new_tokens and eos:
        found.append(shortest(prompt_length + settings.min_new_tokens, eos))
    if settings.forced_bos_token_id is not None:
        found.append(forced((settings.forced_bos_token_id,), at=1))
    if settings.forced_eos_token_id:
        found.append(forced(settings.forced_eos_token_id, at=longest - 1))
    if settings.remove_invalid_values:
        found.append(finite)
    if settings.exponential_decay_length_penalty is not None and eos:
        start, factor = settings.exponential_decay_length_penalty
        found.append(growing_end(start + prompt_length, factor, eos))
    if settings.suppress_tokens:
        found.append(suppressed(settings.suppress_tokens))
    if settings.begin_suppress_tokens:
        begin = prompt_length + (prompt_length <= 1 and settings.forced_bos_token_id is not None)
        found.append(suppressed(settings.begin_suppress_tokens, at=begin))
    found += extra
    if settings.do_sample:
        found += _warpers(settings, 1 if settings.num_beams == 1 else len(eos) + 1 if eos else 2)
    if settings.renormalize_logits:
        found.append(lambda _, scores: log_softmax(scores))
    return found


def _warpers(settings: Settings, keep: int) -> list[Processor]:
    found: list[Processor] = []
    if settings.temperature != 1.0:
        found.append(tempered(settings.temperature))
    if settings.top_k:
        found.append(top_k(settings.top_k, keep))
    if settings.top_p < 1.0:
        found.append(top_p(settings.top_p, keep))
    if settings.min_p is not None:
        found.append(min_p(settings.min_p, keep))
    if settings.typical_p < 1.0:
        found.append(typical(settings.typical_p, keep))
    if 0.0 < settings.epsilon_cutoff < 1.0:
        found.append(cut_off(settings.epsilon_cutoff, keep))
    return found


def process(steps: Sequence[Processor], ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Scores (rows, V) of logits after all processors."""
    scores = logits
    for step in steps:
        scores = step(ids, scores)
    return scores


def draw(scores: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A token (rows,) for each row of scores (rows, V), with the probabilities of their softmax.

    One random number a row: the token at which the cumulative probability passes it, in the order of the vocabulary.
    """
    chosen = np.empty(len(scores), np.int64)
    for row, values in enumerate(scores):
        (possible,) = np.nonzero(values > _NEVER)
        weights = np.exp((values[possible] - values[possible].max()).astype(np.float64))
        cumulative = np.cumsum(weights)
        index = np.searchsorted(cumulative, random.random() * cumulative[-1], side="right")
        chosen[row] = possible[min(int(index), len(possible) - 1)]
    return chosen


def biased(biases: Sequence[tuple[tuple[int, ...], float]]) -> Processor:
    """Add a bias to the last token of a sequence where it would complete that sequence."""

    def run(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        bias = np.zeros_like(scores)
        for sequence, value in biases:
            before = sequence[:-1]
            if sequence[-1] >= scores.shape[1] or len(before) > ids.shape[1]:
                continue
            rows = slice(None) if not before else (ids[:, -len(before) :] == before).all(axis=1)
            bias[rows, sequence[-1]] += np.float32(value)
        return scores + bias

    return run


def bad_words(words: Sequence[tuple[int, ...]], eos: Sequence[int]) -> Processor:
    """Forbid sequences of tokens; never the end of the text."""
    return biased([(word, -np.inf) for word in words if word not in [(token,) for token in eos]])


def repetition(penalty: float) -> Processor:
    """Make tokens that occur in `ids` less likely (CTRL, arXiv:1909.05858): divide scores above 0, multiply others."""
    return lambda ids, scores: _penalized(scores, ids, np.float32(penalty))


def encoder_repetition(penalty: float, encoder_ids: np.ndarray) -> Processor:
    """Make tokens of the encoder's text more likely."""
    return lambda _, scores: _penalized(scores, _rows_of(encoder_ids, len(scores)), np.float32(1 / penalty))


def _penalized(scores: np.ndarray, ids: np.ndarray, penalty: np.float32) -> np.ndarray:
    changed = scores.copy()
    for row, tokens in enumerate(ids):
        seen = np.unique(tokens)
        seen = seen[seen < scores.shape[1]]
        values = scores[row, seen]
        changed[row, seen] = np.where(values < 0, values * penalty, values / penalty)
    return changed


def _rows_of(encoder_ids: np.ndarray, rows: int) -> np.ndarray:
    return np.repeat(encoder_ids, rows // len(encoder_ids), axis=0) if rows > len(encoder_ids) else encoder_ids


def no_repeat_ngram(size: int) -> Processor:
    """Forbid tokens that would complete a sequence of `size` tokens for the second time."""

    def run(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return _without_repeats(ids, ids, size, scores)

    return run


def encoder_no_repeat_ngram(size: int, encoder_ids: np.ndarray) -> Processor:
    """Forbid tokens that would complete a sequence of `size` tokens of the encoder's text."""
    return lambda ids, scores: _without_repeats(ids, _rows_of(encoder_ids, len(scores)), size, scores)


def _without_repeats(ids: np.ndarray, taken_from: np.ndarray, size: int, scores: np.ndarray) -> np.ndarray:
    if ids.shape[1] < size - 1 or taken_from.shape[1] < size:
        return scores
    changed = scores.copy()
    windows = np.lib.stride_tricks.sliding_window_view(taken_from, size, axis=1)
    last = ids[:, ids.shape[1] - size + 1 :]
    rows, places = np.nonzero((windows[:, :, :-1] == last[:, None]).all(axis=2))
    tokens = windows[rows, places, -1]
    known = tokens < scores.shape[1]
    changed[rows[known], tokens[known]] = _NEVER
    return changed


def shortest(length: int, eos: Sequence[int]) -> Processor:
    """No end before `length` tokens."""
    end = suppressed(eos)
    return lambda ids, scores: end(ids, scores) if ids.shape[1] < length else scores


def forced(tokens: Sequence[int], at: int) -> Processor:
    """Only these tokens when there are `at` of them."""

    def run(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if ids.shape[1] != at:
            return scores
        changed = np.full_like(scores, _NEVER)
        changed[:, list(tokens)] = 0
        return changed

    return run


def suppressed(tokens: Sequence[int], at: int | None = None) -> Processor:
    """Never these tokens; with `at` only when there are that many tokens."""
    never = np.array(tokens, np.int64)

    def run(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if at is not None and ids.shape[1] != at:
            return scores
        changed = scores.copy()
        changed[:, never[never < scores.shape[1]]] = _NEVER
        return changed

    return run


def finite(_: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """NaN as 0, infinities as the largest numbers there are."""
    largest = float(np.finfo(np.float32).max)
    return np.nan_to_num(scores, nan=0.0, posinf=largest, neginf=-largest)


def growing_end(start: int, factor: float, eos: Sequence[int]) -> Processor:
    """Make the end ever more likely from `start` tokens on."""

    def run(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        beyond = ids.shape[1] - start
        if beyond <= 0:
            return scores
        changed = scores.copy()
        ends = scores[:, list(eos)]
        added = np.where(np.isfinite(ends), np.abs(ends) * np.float32(factor**beyond - 1), 0)
        changed[:, list(eos)] = ends + added
        return changed

    return run


def tempered(temperature: float) -> Processor:
    """Divide the scores: above 1 flattens the distribution, below sharpens it."""
    return lambda _, scores: scores / np.float32(temperature)


def top_k(count: int, keep: int = 1) -> Processor:
    """Only the `count` best tokens."""

    def run(_: np.ndarray, scores: np.ndarray) -> np.ndarray:
        most = min(max(count, keep), scores.shape[1])
        least = np.partition(scores, -most, axis=1)[:, -most, None]
        return np.where(scores < least, _NEVER, scores)

    return run


def top_p(mass: float, keep: int = 1) -> Processor:
    """Only the best tokens that together have a probability of `mass` (nucleus sampling, arXiv:1904.09751)."""

    def keeps(values: np.ndarray) -> np.ndarray:
        order = np.argsort(values, kind="stable")
        dropped = np.cumsum(softmax(values[order]), dtype=np.float32) <= np.float32(1 - mass)
        dropped[-keep:] = False
        return order[~dropped]

    return _choosing(keeps, keep)


def min_p(share: float, keep: int = 1) -> Processor:
    """Only tokens with at least `share` of the probability of the best (arXiv:2407.01082)."""

    def keeps(values: np.ndarray) -> np.ndarray:
        probabilities = softmax(values)
        kept = probabilities >= np.float32(share) * probabilities.max()
        kept[np.argsort(-values, kind="stable")[:keep]] = True
        return np.nonzero(kept)[0]

    return _choosing(keeps, keep)


def typical(mass: float, keep: int = 1) -> Processor:
    """Only the tokens whose information is nearest to the entropy, up to a probability of `mass` (arXiv:2202.00666)."""

    def keeps(values: np.ndarray) -> np.ndarray:
        logs = log_softmax(values)
        shifted = np.abs(-logs + np.sum(logs * np.exp(logs)))
        order = np.argsort(shifted, kind="stable")
        cumulative = np.cumsum(softmax(values[order]), dtype=np.float32)
        last = min(int((cumulative < np.float32(mass)).sum()), len(values) - 1)
        kept = shifted[order] <= shifted[order[last]]
        kept[:keep] = True
        return order[kept]

    return _choosing(keeps, keep)


def cut_off(least: float, keep: int = 1) -> Processor:
    """Only tokens with a probability of at least `least`."""

    def keeps(values: np.ndarray) -> np.ndarray:
        kept = softmax(values) >= np.float32(least)
        return np.nonzero(kept | (values >= np.sort(values)[-min(keep, len(values))]))[0]

    return _choosing(keeps, keep)


def _choosing(keeps: Callable[[np.ndarray], np.ndarray], keep: int) -> Processor:
    """A processor that keeps, of the possible tokens of each row, those that `keeps` gives the positions of.

    What has been ruled out before (most of a vocabulary after `top_k`) has no probability and costs nothing.
    """

    def run(_: np.ndarray, scores: np.ndarray) -> np.ndarray:
        changed = np.full_like(scores, _NEVER)
        for row, values in enumerate(scores):
            (possible,) = np.nonzero(values > _NEVER)
            chosen = possible[keeps(values[possible])] if len(possible) > keep else possible
            changed[row, chosen] = values[chosen]
        return changed

    return run


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities over the last axis."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
