"""The languages of a tokenizer that marks each text with the token of its language, found by trying them."""

from __future__ import annotations

from typing import Any

from ..source import quiet_transformers

_PROBE = "a 1"


def languages_of(tokenizer: Any) -> dict[str, Any]:
    """`languages` (code to id) and `source_language` of the manifest's `generation`; empty for other tokenizers.

    A language counts when setting it as the source changes one token of a text, and changes it to its own.
    """
    if not isinstance(getattr(type(tokenizer), "src_lang", None), property):
        return {}
    usual = tokenizer.src_lang
    roles = tokenizer.special_tokens_map.values()
    codes = list(getattr(tokenizer, "lang_code_to_id", None) or tokenizer.all_special_tokens)
    codes = [code for code in codes if code not in roles]
    found: dict[str, int] = {}
    with quiet_transformers():
        try:
            plain = tokenizer(_PROBE)["input_ids"]
            at = _place(tokenizer, plain, [code for code in codes if code != usual])
            if at is None:
                return {}
            for code in codes:
                tokenizer.src_lang = code
                ids = tokenizer(_PROBE)["input_ids"]
                if len(ids) == len(plain) and [*ids[:at], *ids[at + 1 :]] == [*plain[:at], *plain[at + 1 :]]:
                    found[code] = int(ids[at])
        finally:
            tokenizer.src_lang = usual
    distinct = {code: token for code, token in found.items() if list(found.values()).count(token) == 1}
    return {"languages": distinct, "source_language": usual} if usual in distinct and len(distinct) > 1 else {}


def _place(tokenizer: Any, plain: list[int], codes: list[str]) -> int | None:
    """Where the token of the language stands: the one that another language changes."""
    for code in codes:
        tokenizer.src_lang = code
        ids = tokenizer(_PROBE)["input_ids"]
        places = [place for place, (one, two) in enumerate(zip(plain, ids, strict=False)) if one != two]
        if len(places) == 1:
            return places[0]
    return None
