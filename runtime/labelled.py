"""Labelled examples of a task, read from a file: JSON lines, or text<TAB>label."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RequestError
from .manifest import Manifest
from .tokenizer import Tokenizer

# What an example of each task holds.
FIELDS = {
    "text-classification": '{"text", "label"}, maybe "text_pair"; label: a name or number of a class, a list of them '
    "for multi-label models, a number for regressions. Or text<TAB>label.",
    "token-classification": '{"tokens": [...], "tags": [...]}: words and their tags, as many.',
    "question-answering": '{"question", "context", "answers": [...]}; no answers: the context holds none.',
    "fill-mask": '{"text", "label"}: a text with one mask as the tokenizer writes it, and the token for it. '
    "Or text<TAB>label.",
    "multiple-choice": '{"prompt", "choices": [...], "label"}: the position of the right choice, from 0 on.',
    "feature-extraction": '{"text", "text_pair", "score"}: two texts and how alike they are.',
}


@dataclass(frozen=True)
class Example:
    """One line: what a pipeline is given, what it should give, and the line's number from 1 on."""

    given: Any
    expected: Any
    line: int


@dataclass(frozen=True)
class Dataset:
    """Labelled examples of one task. `kind` is the task, or `multi-label` or `regression` for those classifiers."""

    kind: str
    examples: tuple[Example, ...]
    path: str

    def __len__(self) -> int:
        return len(self.examples)


def read_data(path: Path, manifest: Manifest, tokenizer: Tokenizer) -> Dataset:
    """Labelled examples of a bundle's task (see `FIELDS`). Other fields of a line are left alone.

    Raises:
        RequestError: the file cannot be read, is empty, or a line is not an example of this task; names the line.
    """
    kind = _kind(manifest)
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise RequestError(f"No such file: {path}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}. Remedy: a text file in UTF-8.") from error
    reader = _Reader(kind, manifest, tokenizer)
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            examples.append(Example(*reader.read(_record(path, line.rstrip("\r"), kind)), number))
        except _Wrong as error:
            raise RequestError(f"{path}, line {number}: {error}\nExpected: {FIELDS[manifest.task]}") from error
    if not examples:
        raise RequestError(f"{path} holds no example. Expected: {FIELDS[manifest.task]}")
    if kind in ("regression", "feature-extraction") and len(examples) < 2:
        raise RequestError(f"{path} holds one example; a rank correlation needs two or more.")
    return Dataset(kind, tuple(examples), str(path))


class _Wrong(Exception):
    """What is wrong with a line."""


def _kind(manifest: Manifest) -> str:
    task = manifest.task
    if task not in FIELDS:
        raise RequestError(f"The task '{task}' has no metric here. Those that have: {', '.join(FIELDS)}.")
    if task != "text-classification":
        return task
    if len(manifest.postprocess.get("id2label") or {}) == 1:
        return "regression"
    return "multi-label" if manifest.postprocess.get("activation") == "sigmoid" else task


def _record(path: Path, line: str, kind: str) -> dict[str, Any]:
    """A line as the fields of an example. A tab separates text and label in files that are not JSON."""
    is_json = path.suffix in (".jsonl", ".json", ".ndjson") or line.lstrip().startswith("{")
    if path.suffix == ".tsv" or not is_json:
        parts = line.split("\t")
        if len(parts) != 2:
            raise _Wrong(f"a line of text has one tab, between text and label; this one has {len(parts) - 1}.")
        if kind not in ("text-classification", "regression", "fill-mask"):
            raise _Wrong(f"examples of {kind} do not fit text<TAB>label; give JSON lines.")
        return {"text": parts[0], "label": parts[1].strip()}
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _Wrong(f"not JSON: {error}.") from error
    if not isinstance(record, dict):
        raise _Wrong(f"not an object but {type(record).__name__}.")
    return record


class _Reader:
    """Makes (given, expected) of a record, for one kind of task."""

    def __init__(self, kind: str, manifest: Manifest, tokenizer: Tokenizer):
        self._labels = {int(index): label for index, label in (manifest.postprocess.get("id2label") or {}).items()}
        self._tokenizer = tokenizer
        self._read = {
            "text-classification": lambda record: (self._text_or_pair(record), self._label(_field(record, "label"))),
            "multi-label": self._multi_label,
            "regression": lambda record: (self._text_or_pair(record), _number(_field(record, "label"), "label")),
            "token-classification": self._words,
            "question-answering": self._question,
            "fill-mask": self._mask,
            "multiple-choice": self._choices,
            "feature-extraction": lambda record: (
                (_text(record, "text"), _text(record, "text_pair")),
                _number(_field(record, "score"), "score"),
            ),
        }[kind]

    def read(self, record: dict[str, Any]) -> tuple[Any, Any]:
        return self._read(record)

    def _text_or_pair(self, record: dict[str, Any]) -> Any:
        text = _text(record, "text")
        return text if record.get("text_pair") is None else {"text": text, "text_pair": _text(record, "text_pair")}

    def _label(self, value: Any) -> str:
        if isinstance(value, str) and value in self._labels.values():
            return value
        if isinstance(value, str) and value.isascii() and value.isdigit():  # a column of a TSV
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and value in self._labels:
            return self._labels[value]
        shown = ", ".join(list(self._labels.values())[:12]) + (", ..." if len(self._labels) > 12 else "")
        raise _Wrong(f"the model has no label {value!r}. It has: {shown}.")

    def _multi_label(self, record: dict[str, Any]) -> tuple[Any, frozenset[str]]:
        given = _field(record, "labels" if "label" not in record else "label")
        return self._text_or_pair(record), frozenset(
            self._label(value) for value in (given if isinstance(given, list) else [given])
        )

    def _words(self, record: dict[str, Any]) -> tuple[list[str], tuple[str, ...]]:
        words, tags = _texts(record, "tokens"), _field(record, "tags")
        if not isinstance(tags, list) or len(tags) != len(words):
            count = len(tags) if isinstance(tags, list) else "no list of"
            raise _Wrong(f"{len(words)} tokens and {count} tags; give one for each.")
        if not words:
            raise _Wrong("no tokens.")
        return words, tuple(self._label(tag) for tag in tags)

    def _question(self, record: dict[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
        answers = _field(record, "answers" if "answer" not in record else "answer")
        if isinstance(answers, dict):  # SQuAD's own form
            answers = answers.get("text")
        answers = [answers] if isinstance(answers, str) else answers
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise _Wrong("answers must be a list of texts.")
        pair = {name: _text(record, name) for name in ("question", "context")}
        if not all(pair.values()):
            raise _Wrong("question and context must not be empty.")
        return pair, tuple(answers)

    def _mask(self, record: dict[str, Any]) -> tuple[str, str]:
        text, label = _text(record, "text"), _text(record, "label")
        mask = self._tokenizer.special_id("mask")
        written = self._tokenizer.token(mask) if mask is not None else ""
        if not written or text.count(written) != 1:
            raise _Wrong(f"the text must have one {written or 'mask'}, it has {text.count(written) if written else 0}.")
        (window,) = self._tokenizer.encode([text])
        if mask not in window.encoding.ids:
            raise _Wrong(f"{written} lies beyond the longest input of the model.")
        for spelling in (label, f" {label}"):  # byte-level tokenizers know words with the space before them
            (window,) = self._tokenizer.encode([spelling], add_special_tokens=False)
            if len(window) == 1:
                return text, self._tokenizer.decode(window.encoding.ids).strip()
        raise _Wrong(f"'{label}' is not one token of the model's vocabulary, so it can never be the answer.")

    def _choices(self, record: dict[str, Any]) -> tuple[dict[str, Any], int]:
        choices, label = _texts(record, "choices"), _field(record, "label")
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(choices):
            raise _Wrong(f"label must be the position of a choice, 0..{len(choices) - 1}, not {label!r}.")
        return {"prompt": _text(record, "prompt"), "choices": choices}, label


def _field(record: dict[str, Any], name: str) -> Any:
    if name not in record:
        raise _Wrong(f"there is no '{name}' in it, only {', '.join(map(repr, record)) or 'nothing'}.")
    return record[name]


def _text(record: dict[str, Any], name: str) -> str:
    value = _field(record, name)
    if not isinstance(value, str):
        raise _Wrong(f"{name} must be a text, not {type(value).__name__}.")
    return value


def _texts(record: dict[str, Any], name: str) -> list[str]:
    value = _field(record, name)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise _Wrong(f"{name} must be a list of texts.")
    return value


def _number(value: Any, name: str) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise _Wrong(f"{name} must be a number, not {value!r}.")
    return number
