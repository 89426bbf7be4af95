"""Is the evaluation really held out? What it takes to say that no template could have written a sentence.

Two questions are asked of a sentence, both on normalised text (no case, accents, spacing, punctuation):

* *Producible*: is there a template, with slot values of the data files, request forms and the optional words before
  and after, that gives exactly this sentence?
* *Same skeleton*: is there a template that fits the whole sentence when each slot may be any text at all, and whose
  own fixed words are at least ``SKELETON`` of the letters? Then it is a template with another filling, no new wording.

And one of pairs: ``similarity``, the Jaccard index of the character trigrams of two normalised sentences.
"""

from __future__ import annotations

import re
from functools import cache

from sentences import Choice, Grammar, Sequence, Slot, load, normalise

SKELETON = 0.7
NEAR_DUPLICATE = 0.8


@cache
def _normal(text: str, language: str) -> str:
    return normalise(text, language)


# What a marker may become; letting both through accepts a little more than the templates really say.
_MARKED = re.compile(r"<(\w+)>")
_ENDINGS = {
    "을": ("을", "를"),
    "이": ("이", "가"),
    "은": ("은", "는"),
    "과": ("과", "와"),
    "이랑": ("이랑", "랑"),
    "으로": ("으로", "로"),
    "으라고": ("으라고", "라고"),
    "으라는": ("으라는", "라는"),
    "이름": ("이", ""),
    "다": ("다", ""),
    # This one may melt into the syllable before it (하 -> 해야), so up to two characters of any kind stand before 야.
    "어야": (".{0,2}야",),
}


class Matcher:
    """Matches one sentence against templates; remembers what each slot can cover from each position."""

    def __init__(self, grammar: Grammar, text: str, wild: bool) -> None:
        self.grammar = grammar
        self.text = normalise(text, grammar.language)
        self.wild = wild
        self._slots: dict[tuple[str, int], dict[int, int]] = {}

    def match(self, nodes: Sequence, starts: dict[int, int]) -> dict[int, int]:
        """End positions reachable from ``starts``, each with the most fixed letters that a way there has."""
        for node in nodes:
            if not starts:
                return {}
            ends: dict[int, int] = {}
            for start, fixed in starts.items():
                if isinstance(node, str):
                    found = self._literal(node, start)
                elif isinstance(node, Choice):
                    found = {}
                    for option in node.options:
                        _merge(found, self.match(option, {start: 0}))
                elif isinstance(node, Slot):
                    found = self._slot(node.name, start)
                else:
                    found = {}
                    for form in self.grammar.requests(node.verb):
                        _merge(found, self._literal(form, start))
                _merge(ends, {end: fixed + more for end, more in found.items()})
            starts = ends
        return starts

    def _literal(self, literal: str, start: int) -> dict[int, int]:
        parts = _MARKED.split(literal)
        reached = {start: 0}
        for index, part in enumerate(parts):
            options = _ENDINGS[part] if index % 2 else (_normal(part, self.grammar.language),)
            after: dict[int, int] = {}
            for place, fixed in reached.items():
                if part == "어야" and index % 2:
                    ends = (place + extra for extra in (1, 2, 3) if self.text[place:].startswith("야", extra - 1))
                    _merge(after, dict.fromkeys(ends, fixed + 1))
                    continue
                for option in options:
                    if self.text.startswith(option, place):
                        _merge(after, {place + len(option): fixed + len(option)})
            reached = after
        return reached

    def _slot(self, name: str, start: int) -> dict[int, int]:
        if self.wild:
            return dict.fromkeys(range(start, len(self.text) + 1), 0)
        key = (name, start)
        if key not in self._slots:
            found: dict[int, int] = {}
            for entry in self.grammar.slots[name]:
                _merge(found, self.match(entry, {start: 0}))
                if name == "task" and self.grammar.language == "ko":  # a verb stem, which <어야> may change
                    _merge(found, self.match(_without_last_letter(entry), {start: 0}))
            self._slots[key] = found
        return self._slots[key]


def _without_last_letter(nodes: Sequence) -> Sequence:
    last = nodes[-1] if nodes else ""
    if isinstance(last, str):
        return (*nodes[:-1], last[:-1])
    if isinstance(last, Choice):
        return (*nodes[:-1], Choice(tuple(_without_last_letter(option) for option in last.options)))
    return nodes


def _merge(into: dict[int, int], more: dict[int, int]) -> None:
    for place, fixed in more.items():
        if into.get(place, -1) < fixed:
            into[place] = fixed


def _pattern(nodes: Sequence, grammar: Grammar) -> str:
    """A regular expression that accepts at least what the sequence can say, slots being any text."""
    out = []
    for node in nodes:
        if isinstance(node, str):
            for index, part in enumerate(_MARKED.split(node)):
                if index % 2:
                    out.append("(?:" + "|".join(_ENDINGS[part]) + ")")
                else:
                    out.append(re.escape(_normal(part, grammar.language)))
        elif isinstance(node, Choice):
            out.append("(?:" + "|".join(_pattern(option, grammar) for option in node.options) + ")")
        elif isinstance(node, Slot):
            out.append(".*")
        else:
            forms = sorted({re.escape(_normal(form, grammar.language)) for form in grammar.requests(node.verb)})
            out.append("(?:" + "|".join(forms) + ")")
    return "".join(out)


@cache
def _patterns(language: str) -> list[tuple[str, int, Sequence, re.Pattern[str]]]:
    grammar = load(language)
    before, after = (
        "|".join(re.escape(_normal(word, language)) for word in words) for words in (grammar.before, grammar.after)
    )
    return [
        (intent, number, template, re.compile(f"(?:{before})?(?:{_pattern(template, grammar)})(?:{after})?"))
        for intent, templates in grammar.intents.items()
        for number, template in enumerate(templates)
    ]


def offending_template(text: str, language: str, wild: bool) -> tuple[str, int] | None:
    """The first template (intent and number) that could have written ``text``, or None.

    ``wild=False`` asks *producible*, ``wild=True`` asks *same skeleton*; see the head of this module.
    """
    grammar = load(language)
    matcher = Matcher(grammar, text, wild)
    length = len(matcher.text)
    starts = {0: 0}
    for word in grammar.before:
        _merge(starts, matcher._literal(word, 0))
    tails = {length: 0} | {
        length - len(tail): len(tail)
        for tail in (_normal(word, language) for word in grammar.after)
        if matcher.text.endswith(tail)
    }
    for intent, number, template, pattern in _patterns(language):
        if not pattern.fullmatch(matcher.text):  # a quick no, for nearly all of them
            continue
        ends = matcher.match(template, starts)
        for end, tail in tails.items():
            if end in ends and (not wild or ends[end] + tail >= SKELETON * length):
                return intent, number
    return None


def trigrams(text: str, language: str) -> frozenset[str]:
    """The character trigrams of the normalised sentence, its borders included."""
    padded = f"^^{normalise(text, language)}$$"
    return frozenset(padded[index : index + 3] for index in range(len(padded) - 2))


def similarity(left: frozenset[str], right: frozenset[str]) -> float:
    """Jaccard index of two sets of trigrams, 0 to 1."""
    return len(left & right) / len(left | right)
