"""Files of texts that a user gives: a text a line, or JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import RequestError

Text = str | tuple[str, str]


def read_texts(path: Path) -> list[str | tuple[str, str]]:
    """Texts of a file: a text a line, or JSON lines with `text` and maybe `text_pair`.

    Raises:
        RequestError: the file is missing, empty, or a line is not what it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}.") from error
    if path.suffix not in (".jsonl", ".json"):
        texts: list[str | tuple[str, str]] = [line for line in lines if line.strip()]
    else:
        texts = [_entry(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not texts:
        raise RequestError(f"{path} holds no text.")
    return texts


def _entry(path: Path, number: int, line: str) -> str | tuple[str, str]:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise RequestError(f"{path}, line {number}, is not JSON: {error}.") from error
    if isinstance(record, str):
        return record
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise RequestError(f"{path}, line {number}: expected an object with a text.")
    pair = record.get("text_pair")
    return (record["text"], pair) if isinstance(pair, str) else record["text"]
