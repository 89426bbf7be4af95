"""How people type: the noise that training sentences get, so that the model does not depend on neat spelling."""

from __future__ import annotations

import random
import unicodedata

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def syllables() -> list[str]:
    """The 2,350 precomposed syllables of KS X 1001: what Korean text is written with, near enough."""
    return [chr(code) for code in range(0xAC00, 0xD7A4) if len(chr(code).encode("euc_kr", "ignore")) == 2]


_SYLLABLES = syllables()


def strip_accents(text: str) -> str:
    """``réveille`` -> ``reveille``, as typed on a phone in a hurry."""
    text = text.replace("œ", "oe").replace("Œ", "OE")
    decomposed = unicodedata.normalize("NFD", text)
    return unicodedata.normalize("NFC", "".join(char for char in decomposed if not unicodedata.combining(char)))


def typo(text: str, rng: random.Random, letters: list[str] | str) -> str:
    """One slip of the finger: a character dropped, doubled, swapped with the next, or replaced."""
    places = [index for index, char in enumerate(text[:-1]) if char.isalpha()]
    if len(places) < 4:
        return text
    at = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[:at] + text[at] + text[at:]
    if kind == 2:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + rng.choice(letters) + text[at + 1 :]


def loosen(text: str, rng: random.Random) -> str:
    """Break the sentence's frame: drop a word, swap two neighbours, or turn the parts around a comma.

    The templates have fewer frames than people have; words should count more than their places.
    """
    kind = rng.random()
    if kind < 0.25 and ", " in text:
        return ", ".join(reversed(text.split(", ", 1)))
    words = text.split(" ")
    if len(words) < 4:
        return text
    at = rng.randrange(len(words) - 1)
    if kind < 0.6:
        del words[at]
    else:
        words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def disturb(text: str, language: str, rng: random.Random) -> str:
    """The sentence as somebody might really type it; about half come back unchanged."""
    if language == "ko":
        if rng.random() < 0.12:
            text = text.replace(" ", "")
        elif rng.random() < 0.35:
            text = "".join("" if char == " " and rng.random() < 0.4 else char for char in text)
        if rng.random() < 0.12:
            text = typo(text, rng, _SYLLABLES)
    else:
        if language == "fr" and rng.random() < 0.25:
            text = strip_accents(text)
        if rng.random() < 0.15:
            text = text.replace("'", rng.choice(["", " ", "’"]))
        if rng.random() < 0.1:
            text = text.replace("-", " ")
        while rng.random() < 0.15:
            text = typo(text, rng, LETTERS)
    if rng.random() < 0.2:
        text += rng.choice(["?", ".", "!", " ?", "...", " !", "??"])
    if rng.random() < 0.1:
        text = text.replace(",", "")
    return text
