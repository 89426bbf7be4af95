"""Classes of tokens, and the entities they form. Grouping follows `transformers`' token-classification pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import RequestError
from ..results import Entity, Token
from ..tokenizer import Window
from .base import TextPipeline, choice, listed, whole
from .maths import softmax

STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True)
class _Piece:
    """A token, or a word made of several, with the probabilities of all classes or the class already decided."""

    word: str
    scores: np.ndarray
    start: int
    end: int
    index: int
    is_subword: bool
    label: str = ""
    score: float = 0.0


class TokenClassification(TextPipeline):
    """Tokens or entities of a text, in reading order."""

    task = "token-classification"
    outputs = ("logits",)
    per_token = ("logits",)

    def __call__(
        self,
        inputs: Any,
        *,
        aggregation_strategy: str = "none",
        ignore_labels: Iterable[str] = ("O",),
        stride: int | None = None,
        is_split_into_words: bool = False,
        delimiter: str = " ",
        batch_size: int | None = None,
    ) -> Any:
        """Label the tokens of a text, or of each of a list.

        Args:
            aggregation_strategy: `none` gives `Token`s; the others give `Entity` groups. `simple` joins neighbours of
                one class, respecting `B-` and `I-`; `first`, `average` and `max` make the tokens of a word agree first,
                on the class of its first token, of their mean scores, or of the surest token.
            ignore_labels: classes left out of the results.
            stride: read all of a long text, in windows that share this many tokens; None truncates it.
            is_split_into_words: inputs are lists of words; positions then refer to `delimiter.join(words)`.

        Returns:
            `Token`s or `Entity`s; for a list of inputs a list of such lists.

        Raises:
            RequestError: something that is not text, or options that do not go together.
        """
        choice("aggregation_strategy", aggregation_strategy, STRATEGIES)
        whole("stride", stride, least=0)
        if stride is not None and aggregation_strategy == "none":
            raise RequestError("stride needs an aggregation_strategy: tokens that two windows share are joined by it.")
        if is_split_into_words:
            items, single = _word_lists(inputs)
            texts = [delimiter.join(words) for words in items]
        else:
            items, single = listed(inputs, (str,), "a text")
            texts = items
        windows = self.tokenizer.encode(
            items,
            max_length=self.max_length,
            stride=stride or 0,
            overflow=stride is not None,
            words=is_split_into_words,
        )
        starts = [_word_starts(words, delimiter) for words in items] if is_split_into_words else None
        ignored = {ignore_labels} if isinstance(ignore_labels, str) else set(ignore_labels)

        def read(outputs: dict[str, np.ndarray], window: Window) -> list[Any]:
            word_starts = starts[window.sample] if starts is not None else None
            pieces = self._pieces(softmax(outputs["logits"]), window, texts[window.sample], word_starts)
            found = self._found(pieces, aggregation_strategy)
            return [item for item in found if _class_of(item) not in ignored]

        results: list[list[Any]] = [[] for _ in items]
        counts = [0] * len(items)
        for window, found in zip(windows, self.run_windows(windows, read, batch_size), strict=True):
            results[window.sample].extend(found)
            counts[window.sample] += 1
        results = [
            _without_overlaps(found) if count > 1 else found for found, count in zip(results, counts, strict=True)
        ]
        return results[0] if single else results

    def _pieces(self, scores: np.ndarray, window: Window, text: str, word_starts: list[int] | None) -> list[_Piece]:
        """The tokens of a window but the special ones. `scores` (tokens, classes)."""
        encoding = window.encoding
        unknown = self.tokenizer.special_id("unk")
        pieces = []
        offsets, ids, word_ids = encoding.offsets, encoding.ids, encoding.word_ids
        for index, special in enumerate(encoding.special_tokens_mask):
            if special:
                continue
            start, end = offsets[index]
            word_id = word_ids[index]
            if word_starts is not None and word_id is not None:
                start, end = start + word_starts[word_id], end + word_starts[word_id]
            token, written = self.tokenizer.token(ids[index]), text[start:end]
            if self.tokenizer.marks_subwords:
                is_subword = len(token) != len(written)
            else:
                # Without marks on subwords a word is what stands between spaces.
                is_subword = start > 0 and " " not in text[start - 1 : start + 1]
            if ids[index] == unknown:
                token, is_subword = written, False
            pieces.append(_Piece(token, scores[index], start, end, index, is_subword))
        return pieces

    def _found(self, pieces: list[_Piece], strategy: str) -> list[Token] | list[Entity]:
        labels = self.id2label
        if strategy in ("none", "simple"):
            decided = [_decided(piece, piece.scores, labels) for piece in pieces]
        else:
            decided = [self._word(word, strategy, labels) for word in _words(pieces)]
        if strategy == "none":
            return [Token(p.label, p.score, p.index, p.word, p.start, p.end) for p in decided]
        return [self._entity(group) for group in _groups(decided)]

    def _word(self, pieces: list[_Piece], strategy: str, labels: dict[int, str]) -> _Piece:
        """One word of several tokens, with the class they agree on."""
        if strategy == "first":
            scores = pieces[0].scores
        elif strategy == "max":
            scores = max(pieces, key=lambda piece: piece.scores.max()).scores
        else:
            scores = np.nanmean(np.stack([piece.scores for piece in pieces]), axis=0)
        word = self.tokenizer.tokens_to_text([piece.word for piece in pieces])
        whole = _Piece(word, scores, pieces[0].start, pieces[-1].end, pieces[0].index, False)
        return _decided(whole, scores, labels)

    def _entity(self, pieces: list[_Piece]) -> Entity:
        return Entity(
            entity_group=pieces[0].label.split("-", 1)[-1],
            score=float(np.nanmean([piece.score for piece in pieces])),
            word=self.tokenizer.tokens_to_text([piece.word for piece in pieces]),
            start=pieces[0].start,
            end=pieces[-1].end,
        )


def _decided(piece: _Piece, scores: np.ndarray, labels: dict[int, str]) -> _Piece:
    top = int(scores.argmax())
    return _Piece(
        piece.word, scores, piece.start, piece.end, piece.index, piece.is_subword, labels[top], float(scores[top])
    )


def _words(pieces: list[_Piece]) -> list[list[_Piece]]:
    words: list[list[_Piece]] = []
    for piece in pieces:
        if words and piece.is_subword:
            words[-1].append(piece)
        else:
            words.append([piece])
    return words


def _groups(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Neighbours of one class together; a `B-` begins a group of its own."""
    groups: list[list[_Piece]] = []
    for piece in pieces:
        begins, tag = _tag(piece.label)
        if groups and not begins and tag == _tag(groups[-1][-1].label)[1]:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and of which kind; a label in no `B-`/`I-` scheme continues."""
    if label.startswith(("B-", "I-")):
        return label.startswith("B-"), label[2:]
    return False, label


def _without_overlaps(entities: list[Entity]) -> list[Entity]:
    """Of entities that overlap, found by two windows, the longest; of equally long ones the surest."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity.start):
        last = kept[-1] if kept else None
        if last is None or not last.start <= entity.start < last.end:
            kept.append(entity)
        elif (entity.end - entity.start, entity.score) > (last.end - last.start, last.score):
            kept[-1] = entity
    return kept


def _class_of(item: Token | Entity) -> str:
    return item.entity if isinstance(item, Token) else item.entity_group


def _word_starts(words: Sequence[str], delimiter: str) -> list[int]:
    starts, position = [], 0
    for word in words:
        starts.append(position)
        position += len(word) + len(delimiter)
    return starts


def _word_lists(inputs: Any) -> tuple[list[Any], bool]:
    if not isinstance(inputs, (list, tuple)) or not all(isinstance(item, (str, list, tuple)) for item in inputs):
        raise RequestError(f"Expected a list of words, or a list of such lists, got {type(inputs).__name__}.")
    single = not inputs or isinstance(inputs[0], str)
    return ([list(inputs)] if single else [list(words) for words in inputs]), single
