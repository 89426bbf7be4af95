"""Text as it is made: pieces that never end inside a character, and never hold a stop string.

Joined, the pieces are what decoding all ids at once gives.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence

from ..tokenizer import Tokenizer

# What decoders put for bytes that are no character, or not yet.
_BROKEN = "�"
# Cleaning up ("do n't" -> "don't") takes a space back that is at most this far from the end.
_CLEANED = 8
# Tokens that are kept to decode the next one with; more cost time and change nothing.
_WINDOW = 32


class Detokenizer:
    """Ids one at a time in, text out as soon as it is certain.

    A token is decoded together with those before it: alone it would lose its leading space, or be half a character.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._held_back = _CLEANED if tokenizer.cleans_up else 0
        self._window: list[int] = []
        self._sent = 0  # characters of the window's text that have been given
        self._broken = False  # whether the text ends inside a character
        named = (tokenizer.token_id(f"<0x{byte:02X}>") for byte in range(256))
        self._bytes = frozenset(token for token in named if token is not None)

    def push(self, token: int) -> str:
        """What is certain after one more token; often nothing."""
        if token in self._skipped:
            return ""
        self._window.append(token)
        if token in self._bytes:  # a run of them is text or marks as a whole, and only its end tells which
            return ""
        text = self._tokenizer.decode(self._window)
        self._broken = text.endswith(_BROKEN)
        # The beginning of a character is one mark, however many of its bytes are there.
        return self._give(text, text[: max(len(text) - max(self._held_back, self._broken), 0)])

    def finish(self) -> str:
        """What was held back."""
        text = self._tokenizer.decode(self._window)
        return self._give(text, text)

    def _give(self, text: str, sure: str) -> str:
        piece = sure[self._sent :]
        self._sent = max(self._sent, len(sure))
        if len(self._window) > _WINDOW and not self._broken:
            self._forget(text)
        return piece

    def _forget(self, text: str) -> None:
        """Keep the last tokens only, as many as give the end of the text in whole characters, all of what is not sent
        among it."""
        ahead = len(text) - self._sent
        for count in range(1, len(self._window)):
            end = self._tokenizer.decode(self._window[-count:])
            if len(end) > ahead and _BROKEN not in end and text.endswith(end):
                self._window = self._window[-count:]
                self._sent = len(end) - ahead
                return


class StopStrings:
    """Text in, text out up to the first of some strings, which `found` names then."""

    def __init__(self, strings: Sequence[str]):
        self._strings = tuple(strings)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """What can be given: text that is not the beginning of a stop string."""
        text = self._held + piece
        hits = [(text.find(string), string) for string in self._strings]
        hits = [(at, string) for at, string in hits if at >= 0]
        if hits:
            at, self.found = min(hits)
            self._held = ""
            return text[:at]
        held = max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back, now that no more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """The length of the longest end of the text that a string begins with."""
    return next((size for size in range(min(len(string) - 1, len(text)), 0, -1) if text.endswith(string[:size])), 0)


def pieces(
    ids: Iterable[int], tokenizer: Tokenizer, stop_strings: Sequence[str] = (), skip_special_tokens: bool = True
) -> Iterator[str]:
    """The text of ids as they come, up to the first stop string; then no more ids are taken.

    Closing it closes where the ids come from.
    """
    detokenizer, stop = Detokenizer(tokenizer, skip_special_tokens), StopStrings(stop_strings)
    try:
        for token in ids:
            piece = stop.push(detokenizer.push(token))
            if piece:
                yield piece
            if stop.found is not None:
                return
        rest = stop.push(detokenizer.finish()) + stop.finish()
        if rest:
            yield rest
    finally:
        if isinstance(ids, Generator):
            ids.close()
