r"""SentencePiece's normalisation as `tokenizers` steps that do the same, also to characters that are not composed.

A SentencePiece model holds a map from characters, and from sequences of them, to what they become; at each place the
longest entry counts. `tokenizers` has that map as a step (`Precompiled`), but looks up grapheme clusters: it finds the
shortest entry, and none in clusters of six bytes. So here sequences are composed before (the maps that are in use are
NFKC with more), with `BETWEEN` where SentencePiece would not compose or reorder; then the map is asked one by one.
"""

from __future__ import annotations

import functools
import itertools
import struct
import unicodedata

import numpy as np
from tokenizers import normalizers

from . import classes
from .steps import ANY, BETWEEN, Step, a_class, characters, replace


def charsmap_steps(charsmap: bytes) -> list[Step]:
    """The steps of a map (`NormalizerSpec.precompiled_charsmap`); none of an empty one."""
    return list(_steps(charsmap)) if charsmap else []


@functools.lru_cache(maxsize=4)
def _steps(charsmap: bytes) -> tuple[Step, ...]:
    entries = read(charsmap)
    alone = (*_apart(), normalizers.Precompiled(charsmap), *replace("string", [(BETWEEN, "")]))
    composed = (*_uncomposed(entries), normalizers.NFKC(), *alone)
    # Sets in other forms than NFKC are rare; they are looked up one by one.
    return min((composed, alone), key=lambda steps: _wrong(steps, entries))


def read(charsmap: bytes) -> dict[str, str]:
    """The entries of a map: a double array trie, then the texts, each ended by a 0 byte (docs/tokenizer-spec.md)."""
    size = struct.unpack_from("<I", charsmap)[0]
    units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
    texts = charsmap[4 + size :]
    found: dict[str, str] = {}
    every = np.arange(1, 256)
    places, keys = _jump(units[:1]), [b""]
    while len(places):  # one byte deeper each time
        next_places, next_keys = [places[:0]], []
        for begin in range(0, len(places), 4096):
            at = places[begin : begin + 4096, None] ^ every
            known = np.where(at < len(units), units[np.minimum(at, len(units) - 1)], -1)
            rows, columns = np.nonzero(known & 0x800000FF == every)
            reached, after = known[rows, columns], at[rows, columns]
            after = after ^ _jump(reached)
            longer = [keys[begin + row] + bytes([column + 1]) for row, column in zip(rows, columns, strict=True)]
            for index in np.nonzero(reached >> 8 & 1)[0]:
                start = int(units[after[index]]) & 0x7FFFFFFF
                found[longer[index].decode()] = texts[start : texts.index(b"\0", start)].decode()
            next_places.append(after)
            next_keys += longer
        places, keys = np.concatenate(next_places), next_keys
    return found


def _jump(units: np.ndarray) -> np.ndarray:
    return (units >> 10) << ((units & 512) >> 6)


def _wrong(steps: tuple[Step, ...], entries: dict[str, str]) -> int:
    """How many of a sample of entries come out otherwise; single characters count most."""
    chain = normalizers.Sequence(list(steps))
    single = [key for key in entries if len(key) == 1]
    longer = [key for key in entries if len(key) > 1]
    sample = [*single, *longer[:: max(len(longer) // 4000, 1)]]
    return sum(chain.normalize_str(key) != entries[key] for key in sample)


@functools.cache
def _joining() -> str:
    """What is in one cluster with the character before it, and every mark."""
    marks = {c for c in characters() if unicodedata.combining(c)}
    return a_class(marks | set(map(chr, classes.points(classes.get("extenders")))))


def _apart() -> list[Step]:
    """A mark before everything that would be looked up together with what stands before it."""
    return replace("regex", [(f"(?<={ANY})(?=[{_joining()}])", BETWEEN), ("\r(?=\n)", f"\r{BETWEEN}")])


def _uncomposed(entries: dict[str, str]) -> list[Step]:
    """A mark wherever NFKC composes or reorders and no entry does."""
    marks = {c for c in characters() if unicodedata.combining(c)}
    followers: dict[str, set[str]] = {}  # of each mark: those that an entry has behind it
    bases: dict[str, set[str]] = {}  # of each mark: what an entry has before it
    for key in entries:
        for first, second in itertools.pairwise(key):
            if second in marks:
                (followers if first in marks else bases).setdefault(first if first in marks else second, set()).add(
                    second if first in marks else first
                )
    apart: dict[str, set[str]] = {mark: marks - followers.get(mark, set()) for mark in marks}
    for letter in characters():
        form = unicodedata.normalize("NFKD", letter)
        if form == letter or letter in marks:
            continue
        if form[-1] not in marks:  # whose last one may be composed (™ ends in M)
            tried = {mark for mark, before in bases.items() if form[-1] in before}
        elif len(unicodedata.normalize("NFKC", letter)) == 1:
            tried = set(bases)
        else:
            tried = marks
        apart[letter] = {mark for mark in tried if _changes(letter, mark, entries)}
    parts = [f"[{before}](?=[{after}])" for before, after in _alike(apart)]
    if "\uac00\u11a8" not in entries:
        parts.append("[\uac00-\ud7a3](?=[\u11a8-\u11c2])")
    for first, seconds in followers.items():  # a letter does not take the first mark, but would take the second
        skipped = {second: bases.get(second, set()) - bases.get(first, set()) for second in seconds}
        parts += [f"[{before}]{first}(?=[{after}])" for after, before in _alike(skipped)]
    return replace("regex", [(rf"(?:{'|'.join(parts)})\K", BETWEEN)])


def _changes(letter: str, mark: str, entries: dict[str, str]) -> bool:
    composed = unicodedata.normalize("NFKC", letter + mark)
    return letter + mark not in entries and composed != unicodedata.normalize("NFKC", letter) + mark


def _alike(sets: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Characters with the same set, and that set, as classes without brackets; empty sets left out."""
    found: dict[frozenset[str], list[str]] = {}
    for character, members in sets.items():
        if members:
            found.setdefault(frozenset(members), []).append(character)
    return [(a_class(alike), a_class(members)) for members, alike in found.items()]
