"""Sentences to calibrate and to evaluate on: Python's own documentation of its language, which every Python carries.

The two sets are disjoint, and the same in every run of one version of Python. Lengths are natural: mostly single
sentences, some whole paragraphs, to past what MiniLM takes.
"""

from __future__ import annotations

import hashlib
import re
from pydoc_data.topics import topics

EVALUATED = 500
# One paragraph in so many stays whole.
_WHOLE = 12
_MARKUP = re.compile(r'[“”"`*]|::$')
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def split(evaluated: int = EVALUATED) -> tuple[list[str], list[str]]:
    """So many texts to evaluate on, and all others, to calibrate on; shuffled by their digests."""
    found: dict[str, None] = {}
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            lines = paragraph.splitlines()
            if any(line.startswith(("***", "===", "---", "   >>>", "+-", "|")) for line in lines):
                continue
            text = _MARKUP.sub("", " ".join(paragraph.split()))
            if not re.match(r"[A-Z]", text) or not text.endswith((".", "!", "?", ":")):
                continue  # a heading, or code
            whole = _digest(text)[0] % _WHOLE == 0
            for part in [text] if whole else _END.split(text):
                if len(part.split()) > 1:
                    found[part] = None
    shuffled = sorted(found, key=_digest)
    return shuffled[:evaluated], shuffled[evaluated:]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
