"""Sets of characters exactly as the `tokenizers` library has them, found by asking it.

Its steps use several tables of different Unicode versions (Oniguruma's, Rust's, and an older one of categories), and
a phone has others again. So a specification carries the sets that it needs as ranges of code points.

Asking takes a second a set, so the usual ones are kept in `classes.json`; a test compares. To make it anew:
`python -m palmtop.export.tokenization.classes`.
"""

from __future__ import annotations

import functools
import json
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

Ranges = tuple[tuple[int, int], ...]
LAST = 0x10FFFF
_STORE = Path(__file__).with_name("classes.json")


@functools.cache
def _every() -> str:
    """Every character that text can have: all code points but surrogates."""
    return "".join(map(chr, [*range(0xD800), *range(0xE000, LAST + 1)]))


def ranges(points: Iterable[int]) -> Ranges:
    """Code points as inclusive ranges, in order."""
    found: list[list[int]] = []
    for point in sorted(set(points)):
        if found and found[-1][1] == point - 1:
            found[-1][1] = point
        else:
            found.append([point, point])
    return tuple((first, last) for first, last in found)


def points(spans: Ranges) -> set[int]:
    """The code points of some ranges."""
    return {point for first, last in spans for point in range(first, last + 1)}


@functools.cache
def _stored() -> dict[str, Ranges]:
    data = json.loads(_STORE.read_text(encoding="utf-8")) if _STORE.is_file() else {}
    return {name: tuple((first, last) for first, last in spans) for name, spans in data.items()}


def get(name: str) -> Ranges:
    """A set by name: a key of `PROBES`, or a class of Oniguruma as it stands between brackets."""
    found = _stored().get(name)
    if found is not None:
        return found
    return PROBES[name]() if name in PROBES else onig(name)


@functools.cache
def onig(expression: str) -> Ranges:
    r"""The characters of a class of Oniguruma, as written between brackets (`\p{L}`, `\s`, `a-z`)."""
    kept = normalizers.Replace(Regex(f"[^{expression}]+"), "").normalize_str(_every())
    return ranges(map(ord, kept))


@functools.cache
def whitespace() -> Ranges:
    """Rust's `char::is_whitespace`."""
    split = pre_tokenizers.WhitespaceSplit()
    return ranges(ord(c) for c in _every() if _maybe_space(c) and not split.pre_tokenize_str(c))


def _maybe_space(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ("Cc", "Zs", "Zl", "Zp", "Cf")


@functools.cache
def punctuation() -> Ranges:
    """What BERT's pre-tokenizer sets apart."""
    parts = pre_tokenizers.Punctuation("removed").pre_tokenize_str(_every())
    return ranges(_missing("".join(part for part, _ in parts)))


@functools.cache
def numeric() -> Ranges:
    """Rust's `char::is_numeric`."""
    parts = pre_tokenizers.Split(Regex(r"[^\p{N}]+"), "removed").pre_tokenize_str(_every())
    candidates = "".join(part for part, _ in parts)
    digits = pre_tokenizers.Digits(individual_digits=False)
    return ranges(ord(c) for c in candidates if [part for part, _ in digits.pre_tokenize_str(f"a{c}")] == ["a", c])


@functools.cache
def bert_removed() -> Ranges:
    """What BERT's `clean_text` removes."""
    return ranges(_missing(_bert(clean_text=True).normalize_str(_every())) - points(bert_spaces()))


@functools.cache
def bert_spaces() -> Ranges:
    """What BERT's `clean_text` turns into a space."""
    clean = _bert(clean_text=True)
    return ranges(ord(c) for c in _every() if _maybe_space(c) and clean.normalize_str(c) == " ")


@functools.cache
def bert_chinese() -> Ranges:
    """What BERT's normaliser puts spaces around."""
    spaced = _bert(handle_chinese_chars=True).normalize_str(_every()[0x21:])
    return ranges(
        ord(spaced[at + 1]) for at, c in enumerate(spaced[:-2]) if c == " " == spaced[at + 2] != spaced[at + 1]
    )


@functools.cache
def bert_accents() -> Ranges:
    """What BERT's normaliser removes after decomposition (categories of an older Unicode)."""
    missing = _missing(_bert(strip_accents=True).normalize_str(_every()))
    return ranges(point for point in missing if unicodedata.normalize("NFD", chr(point)) == chr(point))


@functools.cache
def accents() -> Ranges:
    """What `StripAccents` removes: combining marks."""
    return ranges(_missing(normalizers.StripAccents().normalize_str(_every())))


@functools.cache
def nmt_spaces() -> Ranges:
    """What `Nmt` turns into a space."""
    step = normalizers.Nmt()
    return ranges(point for point in _missing(step.normalize_str(_every())) if step.normalize_str(chr(point)) == " ")


@functools.cache
def nmt_removed() -> Ranges:
    """What `Nmt` removes."""
    return ranges(_missing(normalizers.Nmt().normalize_str(_every())) - points(nmt_spaces()))


@functools.cache
def extenders() -> Ranges:
    """What belongs to the character before it, where a `Precompiled` map looks a text up by grapheme clusters."""
    return ranges([*points(onig(r"\p{Grapheme_Extend}\p{Mc}")), 0x200D, *range(0x1F3FB, 0x1F400)])


@functools.cache
def controls() -> Ranges:
    """What is a grapheme cluster alone (UAX #29: Control), and nothing extends."""
    prepended = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
    return ranges(points(onig(r"\p{Cc}\p{Cf}\p{Zl}\p{Zp}")) - {0x200C, 0x200D} - prepended)


def _bert(**settings: bool) -> normalizers.BertNormalizer:
    off = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
    return normalizers.BertNormalizer(**{**off, **settings})


def _missing(text: str) -> set[int]:
    return set(map(ord, _every())) - set(map(ord, text))


PROBES: dict[str, Callable[[], Ranges]] = {
    "whitespace": whitespace,
    "punctuation": punctuation,
    "numeric": numeric,
    "bert_removed": bert_removed,
    "bert_spaces": bert_spaces,
    "bert_chinese": bert_chinese,
    "bert_accents": bert_accents,
    "accents": accents,
    "nmt_removed": nmt_removed,
    "nmt_spaces": nmt_spaces,
    "extenders": extenders,
    "controls": controls,
}
# The classes of Oniguruma that tokenizers of published models use.
USUAL = (
    r"\p{L}",
    r"\p{N}",
    r"\p{Lu}",
    r"\p{Lt}",
    r"\p{Lm}",
    r"\p{Lo}",
    r"\p{Ll}",
    r"\p{M}",
    r"\s",
    r"\w",
    r"\d",
    r"\p{P}",
    r"\p{S}",
    r"\p{Han}",
    r"\p{Mn}",
)


def probe_all() -> dict[str, Ranges]:
    """Every stored set, asked of the library anew."""
    return {**{name: ask() for name, ask in PROBES.items()}, **{name: onig(name) for name in USUAL}}


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(spans, separators=(',', ':'))}" for name, spans in probe_all().items()]
    _STORE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
