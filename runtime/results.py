"""What pipelines return: small frozen records with the field names of `transformers.pipeline`.

Each one reads as an object (`answer.start`), as a mapping (`answer["start"]`, `dict(answer)`) and as JSON
(`json.dumps(to_plain(answers))`). Character positions count Unicode code points, as Python strings do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np


class Result:
    """Base of all results: how they print, and how they become plain data."""

    __slots__ = ()

    def keys(self) -> Iterable[str]:
        return [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as values that JSON knows."""
        return {name: getattr(self, name) for name in self.keys()}

    def __repr__(self) -> str:
        values = (f"{name}={_short(getattr(self, name))}" for name in self.keys())
        return f"{type(self).__name__}({', '.join(values)})"


@dataclass(frozen=True, slots=True, repr=False)
class Label(Result):
    """A class of the whole text and its score (a probability, unless the model is a regression)."""

    label: str
    score: float


@dataclass(frozen=True, slots=True, repr=False)
class Token(Result):
    """The class of one token. `index` counts tokens of the input with special ones; `text[start:end]` is the token."""

    entity: str
    score: float
    index: int
    word: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, repr=False)
class Entity(Result):
    """A run of tokens of one class, `text[start:end]`. `word` is what the tokenizer makes of its tokens."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, repr=False)
class Answer(Result):
    """A span of the context, `context[start:end]`. Empty with start and end 0: the context holds no answer."""

    answer: str
    score: float
    start: int
    end: int


@dataclass(frozen=True, slots=True, repr=False)
class Fill(Result):
    """A token for a mask: its probability, id, text, and the whole text with it in place."""

    score: float
    token: int
    token_str: str
    sequence: str


@dataclass(frozen=True, slots=True, repr=False)
class Choice(Result):
    """One of the given choices, its position among them and its probability."""

    choice: str
    score: float
    index: int


def to_plain(value: Any) -> Any:
    """Results, lists of them and arrays as values that `json.dumps` takes."""
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    return value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
