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


@dataclass(frozen=True, slots=True, repr=False)
class Generated(Result):
    """What a model wrote; of a chat the chat with the model's message at its end."""

    generated_text: str | list[dict[str, Any]]

    @property
    def text(self) -> str:
        """The text; of a chat its last message's."""
        if isinstance(self.generated_text, str):
            return self.generated_text
        return str(self.generated_text[-1]["content"])


@dataclass(frozen=True, slots=True, repr=False)
class Chunk(Result):
    """A part of a transcript and when it is said: `timestamp` is (start, end) in seconds, the end maybe unknown."""

    text: str
    timestamp: tuple[float | None, float | None]


@dataclass(frozen=True, slots=True, repr=False)
class Transcript(Result):
    """What is said in a sound. `chunks` (words, characters or segments) only where timestamps were asked for."""

    text: str
    chunks: list[Chunk] | None = None

    def keys(self) -> Iterable[str]:
        return ["text"] if self.chunks is None else ["text", "chunks"]

    def to_dict(self) -> dict[str, Any]:
        return {"text": self.text} if self.chunks is None else {"text": self.text, "chunks": to_plain(self.chunks)}


@dataclass(frozen=True, slots=True, repr=False)
class Segment(Result):
    """A stretch of a sound, from `start` to `end` seconds, that is of a class, and its mean probability there."""

    label: str
    score: float
    start: float
    end: float


@dataclass(frozen=True, slots=True, repr=False)
class Box(Result):
    """A box in pixels of the picture, from its top left corner."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


@dataclass(frozen=True, slots=True, repr=False)
class Detection(Result):
    """A thing in a picture: how sure the model is, what it is, and where."""

    score: float
    label: str
    box: Box


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Region(Result):
    """A class of pixels: `mask` is (height, width) uint8, 255 where it is. `score` is None where there is none."""

    score: float | None
    label: str
    mask: np.ndarray


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Depth(Result):
    """Depths of a picture's pixels, (height, width): in the model's unit as float32, and as a grey picture of bytes."""

    predicted_depth: np.ndarray
    depth: np.ndarray


def to_plain(value: Any) -> Any:
    """Results, lists of them and arrays as values that `json.dumps` takes."""
    if isinstance(value, Result):
        return {name: to_plain(entry) for name, entry in value.to_dict().items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    return value


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"array{list(value.shape)}"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
