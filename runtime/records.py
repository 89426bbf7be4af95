"""Files of records that a bundle holds, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from .errors import DamagedError

T = TypeVar("T")


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records, the same bytes for the same records."""
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False, sort_keys=True) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_records(path: Path, read: Callable[[Any], T]) -> list[T]:
    """What `read` makes of each record. Raises DamagedError naming the line that is not one."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path.name} cannot be read: {error}.") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            found.append(read(json.loads(line)))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise DamagedError(f"{path.name}, line {number}, is not a golden vector: {error!r}.") from error
    return found
