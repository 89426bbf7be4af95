"""Golden vectors of a tokenizer: what it makes of text that separates nearly right readers from right ones.

`runtime/tokenizer_golden.py` states the format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...runtime.errors import UnsupportedError
from ...runtime.tokenizer_golden import TokenizerCase, utf16_offsets
from ..texts import LONG, PAIRS, PROBES, SENTENCES
from .rebuild import known_difference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MORE = (
    ("greeting", "Bonjour, comment vas-tu?"),
    ("french quotes", "« Qu'est-ce que c'est ? » dit-il, à 10\u00a0% près…"),
    ("english", "It's Mr. O'Neill's — \"don't\" ask (e.g. No. 5, 1,000 U.S. dollars...)."),
    ("thai", "ขอบคุณมากครับ ราคา ๑๒๓ บาท"),
    ("hindi", "क्या आप मेरी मदद कर सकते हैं?"),
    ("arabic", "السَّلامُ عليكم ورحمة الله، ٤٥٦"),
    ("replaced surrogate", "half a pair \ufffd and \ufffd\ufffd"),
    ("dotted i and sharp s", "İstanbul STRASSE Straße ΟΔΟΣ ﬁn"),
    ("marks out of order", "a\u0301\u0323 a\u0323\u0301 q\u0307\u0323"),
    ("leading and trailing space", "  two before and two after  "),
    ("newlines", "\n\na\n\n b\t\tc \r\n"),
    ("one character", "x"),
    ("one emoji", "🙂"),
)
_STRATEGIES = ("longest_first", "only_first", "only_second")


@dataclass(frozen=True)
class _Ask:
    name: str
    text: str
    pair: str | None = None
    special: bool = True
    truncation: dict[str, Any] | None = None
    padding: dict[str, Any] | None = None


def tokenizer_cases(
    tokenizer: PreTrainedTokenizerBase, slow: PreTrainedTokenizerBase | None = None
) -> list[TokenizerCase]:
    """The golden vectors of a tokenizer.

    Args:
        tokenizer: as transformers loads it (a fast one).
        slow: the Python tokenizer that it was rebuilt from, whose ids count.

    Raises:
        UnsupportedError: the rebuilt tokenizer gives other ids than the Python one; names the text.
    """
    sides = tokenizer.truncation_side, tokenizer.padding_side
    try:
        cases = [_case(tokenizer, ask) for ask in _asked(tokenizer)]
    finally:
        tokenizer.truncation_side, tokenizer.padding_side = sides
    if slow is not None:
        for case in cases:
            texts = case.text if case.text_pair is None else case.text + case.text_pair
            if case.truncation is None and case.padding is None and not known_difference(slow, texts):
                _same_as_slow(slow, case)
    return cases


def _asked(tokenizer: PreTrainedTokenizerBase) -> Iterator[_Ask]:
    for name, text in (*PROBES, *_MORE, *((f"sentence {i}", text) for i, text in enumerate(SENTENCES)), ("long", LONG)):
        yield _Ask(name, text)
    yield _Ask("without special tokens", SENTENCES[2], special=False)
    own = list(dict.fromkeys(map(str, tokenizer.all_special_tokens)))
    for i, token in enumerate(own[:8]):
        yield _Ask(f"special token {i}", f"before {token} between{token}after {token}")
    for i, (first, second) in enumerate(PAIRS):
        yield _Ask(f"pair {i}", first, second)
    yield _Ask("pair with an empty text", "", "no")
    yield _Ask("pair without special tokens", *PAIRS[1], special=False)
    for side in ("right", "left"):
        yield _Ask(f"cut {side}", LONG, truncation={"max_length": 16, "side": side, "strategy": "longest_first"})
        for strategy in _STRATEGIES:
            first, second = PAIRS[3][::-1] if strategy == "only_first" else PAIRS[3]
            for length in (24, 25) if strategy == "longest_first" else (_half_cut(tokenizer, *PAIRS[3]),):
                cut = {"max_length": length, "side": side, "strategy": strategy}
                yield _Ask(f"pair cut {side}, {strategy}, {length}", first, second, truncation=cut)
        if tokenizer.pad_token_id is not None:
            yield _Ask(f"padded {side}", SENTENCES[0], padding={"length": 40, "side": side})
            cut = {"max_length": 12, "side": "right", "strategy": "longest_first"}
            yield _Ask(f"cut and padded {side}", SENTENCES[1], truncation=cut, padding={"length": 12, "side": side})
            yield _Ask(f"pair padded {side}", "ok", "no", padding={"length": 24, "side": side})


def _half_cut(tokenizer: PreTrainedTokenizerBase, kept: str, cut: str) -> int:
    """The length of a pair when half of the one text is gone."""
    counts = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (kept, cut)]
    return tokenizer.num_special_tokens_to_add(pair=True) + counts[0] + max(counts[1] // 2, 1)


def _case(tokenizer: PreTrainedTokenizerBase, ask: _Ask) -> TokenizerCase:
    settings: dict[str, Any] = {"truncation": False, "padding": False}
    if ask.truncation is not None:
        tokenizer.truncation_side = ask.truncation["side"]
        settings |= {"truncation": ask.truncation["strategy"], "max_length": ask.truncation["max_length"]}
    if ask.padding is not None:
        tokenizer.padding_side = ask.padding["side"]
        settings |= {"padding": "max_length", "max_length": ask.padding["length"]}
    found = tokenizer(
        ask.text,
        ask.pair,
        add_special_tokens=ask.special,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_token_type_ids=True,
        return_attention_mask=True,
        **settings,
    )
    ids, offsets = found["input_ids"], [list(pair) for pair in found["offset_mapping"]]
    sequences = [None if i is None else int(i) for i in found.sequence_ids(0)]
    return TokenizerCase(
        name=ask.name,
        text=ask.text,
        text_pair=ask.pair,
        add_special_tokens=ask.special,
        truncation=ask.truncation,
        padding=ask.padding,
        ids=ids,
        attention_mask=found["attention_mask"],
        type_ids=found["token_type_ids"],
        special_tokens_mask=found["special_tokens_mask"],
        offsets=offsets,
        offsets_utf16=utf16_offsets(ask.text, ask.pair, offsets, sequences),
        decoded=tokenizer.decode(ids, skip_special_tokens=False),
        decoded_without_special=tokenizer.decode(ids, skip_special_tokens=True),
    )


def _same_as_slow(slow: PreTrainedTokenizerBase, case: TokenizerCase) -> None:
    found = slow(
        case.text,
        case.text_pair,
        add_special_tokens=case.add_special_tokens,
        return_token_type_ids=True,
        truncation=False,
    )
    pairs = [("ids", case.ids, found["input_ids"])]
    # Without special tokens Python tokenizers give second texts type 0, all others 1.
    if case.add_special_tokens and "token_type_ids" in slow.model_input_names:
        pairs.append(("type ids", case.type_ids, found["token_type_ids"]))
    for what, ours, theirs in pairs:
        if ours != theirs:
            raise UnsupportedError(
                f"{type(slow).__name__} runs Python code that cannot be carried: for {case.text[:60]!r} "
                f"({case.name}) it gives the {what} {theirs[:12]}, the same steps without Python {ours[:12]}. "
                "Remedy: convert it to a fast tokenizer whose ids you have checked, and save that in the checkpoint."
            )
