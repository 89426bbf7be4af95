r"""Regular expressions of `tokenizer.json` (Oniguruma) in a form that every common engine reads alike.

What differs between engines and Unicode versions is resolved: classes become explicit ranges of literal characters,
`(?i:...)` both cases, anchors become lookarounds. What is left is literals, classes, groups, alternation, quantifiers,
lookahead, and lookbehind of fixed length: a subset of JavaScript (`u`), Java, ICU and Python syntax.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass

from ...runtime.errors import UnsupportedError
from . import classes
from .classes import LAST, Ranges

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SHAPED = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"{_SHAPED}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_SHAPED}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KNOWN = {GPT2: "gpt2", LLAMA3: "llama3", QWEN2: "qwen2", CL100K: "cl100k", O200K: "o200k"}

# Possessive quantifiers have no common form. In these none of what they took could have been given back.
_GREEDY = {CL100K: CL100K.replace("?+", "?").replace("++", "+")}

_META = set("\\^$.|?*+()[]{}/")
_ANY = r"[\s\S]"
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b", "0": "\0"}
# Two or three letters that one character equals when case is ignored ("ss" and ß); patterns with them are refused.
_LIGATURES = ("ss", "st", "ff", "fi", "fl")


@dataclass(frozen=True)
class Portable:
    r"""A pattern in the common form. `keep`: it starts with one group, whose text stays (Oniguruma's `\K`)."""

    pattern: str
    keep: bool = False


@functools.cache
def portable(pattern: str) -> Portable:
    """Translate a pattern of Oniguruma.

    Raises:
        UnsupportedError: it uses something that not every engine has; names it.
    """
    found = _Translator(_GREEDY.get(pattern, pattern)).run()
    try:
        re.compile(found.pattern)
    except re.error as error:
        raise UnsupportedError(
            f"The pattern {_short(pattern)} of the tokenizer has no form that all readers know: {error}. {_REMEDY}"
        ) from error
    return found


_REMEDY = "Remedy: write the step with literals, classes, groups and lookarounds of fixed length."


class _Translator:
    def __init__(self, pattern: str):
        self.source, self.at, self.out = pattern, 0, ""
        self.folding = [False]  # of the groups that are open
        self.keep: int | None = None

    def run(self) -> Portable:
        while self.at < len(self.source):
            self._next()
        if self.keep is None:
            return Portable(self.out)
        return Portable(f"({self.out[: self.keep]}){self.out[self.keep :]}", keep=True)

    def _refuse(self, what: str) -> UnsupportedError:
        return UnsupportedError(
            f"The pattern {_short(self.source)} of the tokenizer has {what}, which not every reader knows. {_REMEDY}"
        )

    def _take(self) -> str:
        if self.at >= len(self.source):
            raise self._refuse("an end in the middle")
        self.at += 1
        return self.source[self.at - 1]

    def _next(self) -> None:
        character = self._take()
        if character == "\\":
            self._escape()
        elif character == "[":
            self.out += written(*self._class())
        elif character == "(":
            self._group()
        elif character == ")":
            self.folding.pop()
            if not self.folding:
                raise self._refuse("a bracket too many")
            self.out += ")"
        elif character in "*+?{":
            self._quantifier(character)
        elif character == "|":
            self.out += "|"
        elif character == ".":
            self.out += "[^\n]"
        elif character == "^":
            self.out += rf"(?:(?<!{_ANY})|(?<=\n)(?={_ANY}))".replace(r"\n", "\n")
        elif character == "$":
            self.out += "(?![^\n])"
        else:
            self._literal(character)

    def _literal(self, character: str) -> None:
        cases = _cases(ord(character)) if self.folding[-1] else {ord(character)}
        if self.folding[-1]:
            rest = self.source[self.at - 1 : self.at + 1].lower()
            if rest in _LIGATURES:
                raise self._refuse(f"'{rest}' without regard to case")
        if len(cases) > 1:
            self.out += written(classes.ranges(cases), False)
        else:
            self.out += f"\\{character}" if character in _META else character

    def _escape(self) -> None:
        character = self._take()
        if character in "pPsSdDwW":
            self.out += written(*self._named(character))
        elif character == "K":
            if len(self.folding) > 1 or self.keep is not None or "|" in self.source:
                self._only_outer_alternative()
            self.keep = len(self.out)
        elif character == "A":
            self.out += f"(?<!{_ANY})"
        elif character == "z":
            self.out += f"(?!{_ANY})"
        elif (point := self._code(character)) is not None:
            self._literal(chr(point))
        else:
            raise self._refuse(f"\\{character}")

    def _only_outer_alternative(self) -> None:
        """`\\K` may stand once, outside all groups; alternatives outside groups would make it ambiguous."""
        depth, before = 0, re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "", self.source)
        for character in before:
            depth += {"(": 1, ")": -1}.get(character, 0)
            if character == "|" and depth == 0:
                raise self._refuse("\\K in an alternative")
        if len(self.folding) > 1 or self.keep is not None:
            raise self._refuse("\\K in a group, or twice")

    def _code(self, character: str) -> int | None:
        """The code point of an escape that means one character."""
        if character in _CONTROLS:
            return ord(_CONTROLS[character])
        if character in "xu":
            found = re.compile(
                r"\{([0-9A-Fa-f]+)\}|([0-9A-Fa-f]{4})" if character == "u" else r"\{([0-9A-Fa-f]+)\}|([0-9A-Fa-f]{1,2})"
            ).match(self.source, self.at)
            if found is None:
                raise self._refuse(f"\\{character}")
            self.at = found.end()
            return int(found[1] or found[2], 16)
        return None if character.isalnum() else ord(character)

    def _named(self, character: str) -> tuple[Ranges, bool]:
        """The class after a backslash, and whether it is negated."""
        name = f"\\{character.lower()}"
        if character in "pP":
            end = self.source.find("}", self.at)
            if self.source[self.at : self.at + 1] != "{" or end < 0:
                raise self._refuse("a property without braces")
            name += self.source[self.at : end + 1]
            self.at = end + 1
        try:
            return classes.get(name), character.isupper()
        except Exception as error:  # the library raises bare Exception
            raise self._refuse(name) from error

    def _class(self) -> tuple[Ranges, bool]:
        negated = self.source.startswith("^", self.at)
        self.at += negated
        found: set[int] = set()
        first = True
        while (character := self._take()) != "]" or first:
            first = False
            if character == "[" or self.source.startswith("&&", self.at - 1):
                raise self._refuse("a class in a class")
            if character == "\\" and self.source[self.at : self.at + 1] in tuple("pPsSdDwW"):
                spans, other = self._named(self._take())
                inside = classes.points(spans)
                found |= _others(inside) if other else inside
                continue
            low = self._point(character)
            if self.source.startswith("-", self.at) and not self.source.startswith("-]", self.at):
                self.at += 1
                found |= set(range(low, self._point(self._take()) + 1))
            else:
                found.add(low)
        if self.folding[-1]:
            found = {case for point in found for case in _cases(point)}
        return classes.ranges(found), negated

    def _point(self, character: str) -> int:
        if character != "\\":
            return ord(character)
        escaped = self._take()
        point = self._code(escaped)
        if point is None:
            raise self._refuse(f"\\{escaped} in a class")
        return point

    def _group(self) -> None:
        for opening, written_as, folding in (
            ("?:", "(?:", None),
            ("?=", "(?=", None),
            ("?!", "(?!", None),
            ("?<=", "(?<=", None),
            ("?<!", "(?<!", None),
            ("?i:", "(?:", True),
            ("?-i:", "(?:", False),
        ):
            if self.source.startswith(opening, self.at):
                self.at += len(opening)
                self.out += written_as
                self.folding.append(self.folding[-1] if folding is None else folding)
                return
        if self.source.startswith("?", self.at):
            raise self._refuse(f"({self.source[self.at : self.at + 3]}")
        self.out += "(?:"
        self.folding.append(self.folding[-1])

    def _quantifier(self, character: str) -> None:
        if character == "{":
            end = self.source.find("}", self.at)
            if end < 0 or not re.fullmatch(r"\d+(,\d*)?", self.source[self.at : end]):
                self._literal("{")
                return
            character += self.source[self.at : end + 1]
            self.at = end + 1
        self.out += character
        after = self.source[self.at : self.at + 1]
        if after == "?":
            self.at += 1
            self.out += "?"
        elif after and after in "+*":
            raise self._refuse("a possessive quantifier")


def written(spans: Ranges, negated: bool = False) -> str:
    """A class in brackets, its ranges as literal characters."""
    parts = []
    for first, last in spans:
        parts.append(_in_class(first) if first == last else f"{_in_class(first)}-{_in_class(last)}")
    return f"[{'^' if negated else ''}{''.join(parts)}]"


def _in_class(point: int) -> str:
    return f"\\{chr(point)}" if chr(point) in "\\]^-[" else chr(point)


def _others(inside: set[int]) -> set[int]:
    return {point for point in range(LAST + 1) if not 0xD800 <= point < 0xE000} - inside


def _cases(point: int) -> set[int]:
    """The characters that are equal to one when case is ignored."""
    fold = chr(point).casefold()
    return _folds().get(fold, {point}) | {point}


@functools.cache
def _folds() -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for point in range(0x1F000):
        if not 0xD800 <= point < 0xE000 and unicodedata.category(chr(point)).startswith(("L", "M", "N", "S")):
            found.setdefault(chr(point).casefold(), set()).add(point)
    return found


def _short(pattern: str) -> str:
    return repr(pattern if len(pattern) < 80 else f"{pattern[:76]}...")
