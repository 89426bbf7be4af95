"""Golden vectors of a bundle's tokenizer, `tokenizer/golden.jsonl`: one JSON object a line, to check a reader with.

- `name`; the input: `text`, `text_pair` (or null), `add_special_tokens`;
- `truncation`: null, or `max_length`, `side` and `strategy` (`longest_first`, `only_first`, `only_second`);
- `padding`: null, or the `length` that is padded to and the `side` that padding is on;
- what comes out: `ids`, `attention_mask`, `type_ids`, `special_tokens_mask` (1 for special tokens put around text, and
  padding), `offsets` (begin and end of each token in its text, in code points; [0, 0] for special tokens and padding),
  `offsets_utf16` (the same in UTF-16 code units), `decoded` and `decoded_without_special` (text of all ids).
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .records import read_records, write_records

GOLDEN_TOKENS_NAME = "golden.jsonl"


@dataclass(frozen=True)
class TokenizerCase:
    """One golden vector; see the head of this module."""

    name: str
    text: str
    text_pair: str | None
    add_special_tokens: bool
    truncation: dict[str, Any] | None
    padding: dict[str, Any] | None
    ids: list[int]
    attention_mask: list[int]
    type_ids: list[int]
    special_tokens_mask: list[int]
    offsets: list[list[int]]
    offsets_utf16: list[list[int]]
    decoded: str
    decoded_without_special: str


def write_tokenizer_golden(path: Path, cases: list[TokenizerCase]) -> None:
    """Write cases, one a line, the same bytes for the same cases."""
    write_records(path, (dataclasses.asdict(case) for case in cases))


def read_tokenizer_golden(path: Path) -> list[TokenizerCase]:
    """Read cases. Raises DamagedError naming the line that is not one."""
    return read_records(path, lambda record: TokenizerCase(**record))


def utf16_offsets(
    text: str, pair: str | None, offsets: list[list[int]], sequences: list[int | None]
) -> list[list[int]]:
    """Offsets in code points as offsets in UTF-16 code units. `sequences`: which text each token is of, or None."""
    tables = [list(itertools.accumulate((1 + (c > "\uffff") for c in part), initial=0)) for part in (text, pair or "")]
    return [
        [0, 0] if sequence is None else [tables[sequence][begin], tables[sequence][end]]
        for (begin, end), sequence in zip(offsets, sequences, strict=True)
    ]
