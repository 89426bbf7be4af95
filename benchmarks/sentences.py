"""Sentences to calibrate and to evaluate on: Python's own documentation of its language, which every Python carries.

The two sets are disjoint, and the same in every run of one version of Python. Lengths are natural: mostly single
sentences, some whole paragraphs, to past what MiniLM takes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pydoc_data.topics import topics

EVALUATED = 500
# One paragraph in so many stays whole.
_WHOLE = 12
_MARKUP = re.compile(r'[“”"`*]|::$')
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def split(evaluated: int = EVALUATED) -> tuple[list[str], list[str]]:
    """So many texts to evaluate on, and all others, to calibrate on; shuffled by their digests."""
    found: dict[str, None] = {}
    for text in _paragraphs():
        whole = _digest(text)[0] % _WHOLE == 0
        for part in [text] if whole else _END.split(text):
            if len(part.split()) > 1:
                found[part] = None
    shuffled = sorted(found, key=_digest)
    return shuffled[:evaluated], shuffled[evaluated:]


def natural(count: int) -> list[str]:
    """So many texts, of all that there are: those that `split` gives, then paragraphs whose sentences are among them.

    Raises:
        ValueError: there are not as many.
    """
    found = dict.fromkeys(split(count)[0])
    for text in sorted(_paragraphs(), key=_digest):
        if len(found) >= count:
            return sorted(found, key=_digest)
        found.setdefault(text)
    raise ValueError(f"Python's documentation has {len(found)} texts, not {count}.")


def _paragraphs() -> Iterator[str]:
    """Every paragraph of prose, as one line without markup."""
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            lines = paragraph.splitlines()
            if any(line.startswith(("***", "===", "---", "   >>>", "+-", "|")) for line in lines):
                continue
            text = _MARKUP.sub("", " ".join(paragraph.split()))
            if not re.match(r"[A-Z]", text) or not text.endswith((".", "!", "?", ":")):
                continue  # a heading, or code
            yield text


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
