"""Templates in, sentences out: the small grammar that the training text is written in.

A file in ``data/`` holds one language. ``= intent NAME``, ``= slot NAME``, ``= request``, ``= verbs``, ``= before`` and
``= after`` open a section; each other line is one entry. Inside an entry ``[a|b|]`` chooses, ``{slot}`` fills in a line
of that slot, and ``{r:verb}`` puts a verb into one of the request forms ("could you %1", "tu peux %3", "%1 주세요").
French writes ``de~`` where the word elides; Korean writes ``<을>`` and its like where a particle or an ending depends
on the sound before it. Both are resolved after sampling, so the data files stay readable.
"""

from __future__ import annotations

import random
import re
import unicodedata
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from noise import syllables

HERE = Path(__file__).resolve().parent
LANGUAGES = ("en", "fr", "ko")
_SYLLABLES = syllables()


@dataclass(frozen=True)
class Choice:
    """``[a|b|]``: one of several sequences."""

    options: tuple[Sequence, ...]


@dataclass(frozen=True)
class Slot:
    """``{name}``: one entry of that slot."""

    name: str


@dataclass(frozen=True)
class Request:
    """``{r:verb}``: the verb in one of the language's request forms."""

    verb: str


Sequence = tuple["str | Choice | Slot | Request", ...]


@dataclass
class Grammar:
    """One language: its templates by intent, its slots, and how it asks for things."""

    language: str
    intents: dict[str, list[Sequence]] = field(default_factory=dict)
    slots: dict[str, list[Sequence]] = field(default_factory=dict)
    request: list[str] = field(default_factory=list)
    verbs: dict[str, list[str]] = field(default_factory=dict)
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)

    def requests(self, verb: str) -> list[str]:
        """Every request form of ``verb``; the plain imperative comes first."""
        forms = self.verbs.get(verb)
        if forms is None:
            if self.verbs:
                raise ValueError(f"{self.language}: the verb '{verb}' is not in the verbs section")
            forms = [verb]
        return [re.sub(r"%(\d)", lambda m: forms[int(m[1]) - 1], pattern) for pattern in self.request]


def parse(text: str) -> Sequence:
    """Read one entry. Raises ValueError on unbalanced brackets."""
    nodes, end = _parse(text, 0, nested=False)
    if end != len(text):
        raise ValueError(f"unbalanced bracket in '{text}'")
    return nodes


def _parse(text: str, position: int, nested: bool) -> tuple[Sequence, int]:
    nodes: list[str | Choice | Slot | Request] = []
    while position < len(text):
        char = text[position]
        if char == "[":
            options = []
            while True:
                option, position = _parse(text, position + 1, nested=True)
                options.append(option)
                if position >= len(text):
                    raise ValueError(f"unbalanced bracket in '{text}'")
                if text[position] == "]":
                    break
            nodes.append(Choice(tuple(options)))
            position += 1
        elif char == "{":
            end = text.index("}", position)
            name = text[position + 1 : end]
            nodes.append(Request(name[2:]) if name.startswith("r:") else Slot(name))
            position = end + 1
        elif nested and char in "|]":
            break
        else:
            end = position
            while end < len(text) and text[end] not in "[{" and not (nested and text[end] in "|]"):
                end += 1
            nodes.append(text[position:end])
            position = end
    return tuple(nodes), position


@cache
def load(language: str) -> Grammar:
    """The grammar of one language, from ``data/<language>.txt``."""
    grammar = Grammar(language)
    section, name = "", ""
    for line in (HERE / "data" / f"{language}.txt").read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("= "):
            section, _, name = line[2:].partition(" ")
        elif section == "intent":
            grammar.intents.setdefault(name, []).append(parse(line))
        elif section == "slot":
            grammar.slots.setdefault(name, []).append(parse(line))
        elif section == "verbs":
            verb, _, forms = line.partition(" = ")
            grammar.verbs[verb] = forms.split(", ")
        else:
            getattr(grammar, section).append(line)
    return grammar


def sample(grammar: Grammar, nodes: Sequence, rng: random.Random, unheard: float = 0.0) -> str:
    """One sentence of the sequence, particles and elisions resolved.

    With probability ``unheard``, a slot whose values are names and things is filled with a word that does not exist:
    there are more songs and towns than a list can hold.
    """
    text = " ".join("".join(_sample(grammar, nodes, rng, unheard)).split())
    return {"fr": _french, "ko": _korean}.get(grammar.language, lambda same: same)(text)


OPEN_SLOTS = frozenset(
    ["artist", "city", "food", "goods", "item", "name", "person", "phrase", "place", "song", "subject", "todo"]
)


def _sample(grammar: Grammar, nodes: Sequence, rng: random.Random, unheard: float) -> list[str]:
    out: list[str] = []
    for node in nodes:
        if isinstance(node, str):
            out.append(node)
        elif isinstance(node, Choice):
            out += _sample(grammar, rng.choice(node.options), rng, unheard)
        elif isinstance(node, Slot):
            if unheard and node.name in OPEN_SLOTS and rng.random() < unheard:
                out.append(" ".join(made_up_word(grammar.language, rng) for _ in range(rng.choice((1, 1, 2)))))
            else:
                out += _sample(grammar, rng.choice(grammar.slots[node.name]), rng, unheard)
        else:
            forms = grammar.requests(node.verb)
            # People mostly just say it: nearly half of the time the plain imperative.
            out.append(forms[0] if rng.random() < 0.4 else rng.choice(forms))
    return out


def made_up_word(language: str, rng: random.Random) -> str:
    """A word that could be a name: two or three syllables."""
    if language == "ko":
        return "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 3))))
    starts, vowels, ends = (
        [
            "b",
            "c",
            "d",
            "f",
            "g",
            "h",
            "j",
            "k",
            "l",
            "m",
            "n",
            "p",
            "r",
            "s",
            "t",
            "v",
            "w",
            "z",
            "br",
            "ch",
            "tr",
            "st",
        ],
        "aeiou",
        ["", "", "n", "s", "r"],
    )
    return "".join(rng.choice(starts) + rng.choice(vowels) for _ in range(rng.choice((2, 2, 3)))) + rng.choice(ends)


# --- French: elision and contraction ---------------------------------------------------------------------------------

_ELIDES = re.compile(r"(\w+)~\s*(?=([aeiouyâàéèêëîïôûœ]|h(?:ui|ô|ab|eu|iv|om|or|él))?)", re.IGNORECASE)
_CONTRACTS = {"à le": "au", "à les": "aux", "de le": "du", "de les": "des"}
_CONTRACTION = re.compile(r"\b(à les|à le|de les|de le)\b(?= [^\d])", re.IGNORECASE)


_PARTITIVE = re.compile(r"\bde~ ?(?:du |des |de la |de l')", re.IGNORECASE)  # besoin de + du pain -> besoin de pain


def _french(text: str) -> str:
    text = _PARTITIVE.sub("de~", text)
    text = _ELIDES.sub(lambda m: m[1][:-1] + "'" if m[2] else m[1] + " ", text)
    return _CONTRACTION.sub(lambda m: _CONTRACTS[m[1].lower()], text)


# --- Korean: particles and endings -----------------------------------------------------------------------------------

_FINAL_DIGIT = {"0": 21, "1": 8, "3": 16, "6": 1, "7": 8, "8": 8}
_PAIRS = {"을": "를", "이": "가", "은": "는", "과": "와", "이랑": "랑", "으라고": "라고", "으라는": "라는"}
# <이름> is the 이 that a given name ending in a consonant takes: 민준이, but 민지.
_VOWEL_A = (0, 8)  # ㅏ ㅗ take 아, the others 어


def _final(char: str) -> int:
    """Index of the final consonant of a syllable, 0 for none (8 is ㄹ)."""
    if "가" <= char <= "힣":
        return (ord(char) - 0xAC00) % 28
    return _FINAL_DIGIT.get(char, 0)


def _with_vowel(before: str, vowel: int) -> str:
    code = ord(before) - 0xAC00
    return chr(0xAC00 + code // 588 * 588 + vowel * 28)


def _must(stem: str) -> str:
    """The stem with 아/어 joined: 먹 -> 먹어, 보내 -> 보내, 챙기 -> 챙겨, 하 -> 해, 비우 -> 비워."""
    last = stem[-1]
    vowel = (ord(last) - 0xAC00) % 588 // 28
    if _final(last):
        return stem + ("아" if vowel in _VOWEL_A else "어")
    if last == "하":
        return stem[:-1] + "해"
    if last == "그":  # 잠그다, 담그다
        return stem[:-1] + "가"
    joined = {20: 6, 13: 14, 8: 9}.get(vowel)  # ㅣ+어 ㅕ, ㅜ+어 ㅝ, ㅗ+아 ㅘ
    return stem if joined is None else stem[:-1] + _with_vowel(last, joined)


def _korean(text: str) -> str:
    def resolve(match: re.Match[str]) -> str:
        stem, marker = match[1], match[2]
        final = _final(stem[-1])
        if marker == "어야":
            return _must(stem) + "야"
        if marker == "이름":
            return stem + ("이" if final else "")
        if marker == "다":  # a quoted command or proposal takes no 다: 먹으라고, 만나자고
            return stem if stem[-1] in "라자" else stem + "다"
        if marker == "으로":
            return stem + ("으로" if final not in (0, 8) else "로")
        if marker in ("으라고", "으라는") and final == 8:
            return stem + _PAIRS[marker]
        return stem + (marker if final else _PAIRS[marker])

    return re.sub(r"(\S+?)<(\w+)>", resolve, text)


# --- comparing sentences ---------------------------------------------------------------------------------------------

# Articles and the prepositions that merge with them or elide before them carry no wording in French.
_FRENCH_LINKS = frozenset(["de", "d", "du", "des", "le", "la", "les", "l", "à", "a", "au", "aux"])


def normalise(text: str, language: str) -> str:
    """What is left of a sentence when case, accents, spacing and punctuation are taken away.

    French loses its articles, "de" and "à" too, so that "au bureau", "le bureau" and "à le bureau" (a template before
    contraction) are one sentence; more sentences count as the same this way, not fewer.
    """
    text = unicodedata.normalize("NFC", text.lower().replace("œ", "oe"))
    if language == "fr":
        words = re.findall(r"[^\W_]+", text)
        text = " ".join("que" if word == "qu" else word for word in words if word not in _FRENCH_LINKS)
    if language != "ko":
        text = "".join(char for char in unicodedata.normalize("NFD", text) if not unicodedata.combining(char))
    return re.sub(r"[\W_]+", "", text)
