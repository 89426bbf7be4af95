"""Text of what a CTC model says frame by frame (Graves et al. 2006), and when each character and word is said."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Spoken:
    """A character or word, and its frames `start` to `end` (exclusive)."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Vocabulary:
    """The manifest's `postprocess["ctc"]`.

    tokens: by id. blank: the token that says nothing. delimiter: the token between words, shown as `space`.
    lower: whether texts are given in lower case. unknown: what stands for ids beyond the tokens.
    """

    tokens: tuple[str, ...]
    blank: str
    delimiter: str | None
    space: str
    lower: bool
    unknown: str

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Vocabulary:
        return cls(
            tuple(data["tokens"]), data["blank"], data["delimiter"], data["space"], data["lower"], data["unknown"]
        )

    def characters(self, ids: np.ndarray) -> list[Spoken]:
        """What is said: equal neighbours are one, blanks are nothing."""
        names = [self.tokens[index] if index < len(self.tokens) else self.unknown for index in ids.tolist()]
        said, start = [], 0
        for name, run in groupby(names):
            end = start + len(list(run))
            if name != self.blank:
                said.append(Spoken(self.space if name == self.delimiter else name, start, end))
            start = end
        return said

    def text(self, characters: list[Spoken]) -> str:
        """The text that characters make."""
        text = "".join(character.text for character in characters).strip()
        return text.lower() if self.lower else text

    def words(self, characters: list[Spoken]) -> list[Spoken]:
        """The words that characters make, from the first frame of each word's first to the last of its last one."""
        words: list[Spoken] = []
        for space, run in groupby(characters, key=lambda character: character.text == self.space):
            if not space:
                part = list(run)
                words.append(Spoken("".join(one.text for one in part), part[0].start, part[-1].end))
        return words
