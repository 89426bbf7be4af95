r"""Steps that rebuilt tokenizers share: Python's string methods, special tokens and decoding as `tokenizers` does them.

`tokenizers` replaces a match by a constant. So what stays of a match is a lookaround, or the text before `\K`; and
where a place must be remembered from one step to the next, `MARK` is set there, which no text holds: a text's own
becomes `OTHER` first.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors

from ...runtime.errors import UnsupportedError
from .classes import LAST, ranges
from .patterns import written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK, OTHER = "\ue000", "\ue001"
# The same where `MARK` is in use already.
BETWEEN = "\ue004"
ANY = r"[\x{0}-\x{10FFFF}]"
START, END = f"(?<!{ANY})", f"(?!{ANY})"

Step = normalizers.Normalizer


# --- sets of characters ---------------------------------------------------------------------------------------------


@functools.cache
def characters() -> str:
    """Every character that text can have."""
    return "".join(map(chr, [*range(0xD800), *range(0xE000, LAST + 1)]))


def a_class(members: Iterable[str]) -> str:
    """A class of characters as patterns have it, without its brackets."""
    return written(ranges(map(ord, members)))[1:-1]


@functools.cache
def python_class(expression: str) -> str:
    """What Python's `re` takes for a class, without brackets."""
    return a_class(re.findall(expression, characters()))


def escaped(text: str) -> str:
    """A text as a pattern that matches it alone."""
    return "".join(f"\\{character}" if character in "\\^$.|?*+()[]{}/" else character for character in text)


def any_of(texts: Iterable[str]) -> str:
    """A pattern that matches the longest of some texts that stands at a place; common beginnings are tried once."""
    tree: dict[str, dict] = {}
    for text in texts:
        place = tree
        for character in text:
            place = place.setdefault(character, {})
        place[""] = {}
    return _branches(tree)


def _branches(tree: dict[str, dict]) -> str:
    leaves = [character for character, rest in tree.items() if character and set(rest) == {""}]
    parts = [
        f"{escaped(character)}{_branches(rest)}" for character, rest in tree.items() if character and set(rest) != {""}
    ]
    if leaves:
        parts.append(escaped(leaves[0]) if len(leaves) == 1 else f"[{a_class(leaves)}]")
    if not parts:
        return ""
    found = parts[0] if len(parts) == 1 and "" not in tree else f"(?:{'|'.join(parts)})"
    return f"{found}?" if "" in tree else found


# --- normalisation --------------------------------------------------------------------------------------------------


def replace(kind: str, pairs: Iterable[tuple[str, str]]) -> list[Step]:
    """Replacements one after the other; `kind` says whether they are of a `string` or a `regex`."""
    return [normalizers.Replace(Regex(old) if kind == "regex" else old, new) for old, new in pairs]


def remove(unwanted: Callable[[str], bool]) -> list[Step]:
    """Every character of a kind taken out."""
    return replace("regex", [(f"[{a_class(filter(unwanted, characters()))}]", "")])


@functools.cache
def _sigma() -> str:
    """Python writes Σ at the end of a word ς, which no other lower-casing of single characters does."""
    letters = {c for c in characters() if f"{c}Σ".lower()[-1] == "ς"}
    ignored = a_class(c for c in characters() if c not in letters and f"A{c}Σ".lower()[-1] == "ς")
    cased = a_class(letters)
    return rf"[{cased}][{ignored}]*\KΣ(?![{ignored}]*[{cased}])"


def lower() -> list[Step]:
    """Python's `lower()`."""
    return [*replace("regex", [(_sigma(), "ς")]), normalizers.Lowercase()]


# --- special tokens -------------------------------------------------------------------------------------------------


def add_tokens(backend: Tokenizer, slow: PreTrainedTokenizerBase) -> None:
    """Give a pipeline the added tokens of a slow tokenizer, which looks for them in the text as it is given.

    Raises:
        UnsupportedError: one has an id that no pipeline would give it.
    """
    for token_id, token in sorted(slow.added_tokens_decoder.items()):
        special = token.special or token.content in slow.all_special_tokens
        entry = AddedToken(
            token.content,
            special=special,
            normalized=False,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            single_word=token.single_word,
        )
        backend.add_special_tokens([entry]) if special else backend.add_tokens([entry])
        if backend.token_to_id(token.content) != token_id:
            raise UnsupportedError(
                f"The added token {token.content!r} has id {token_id}, which leaves a gap after the vocabulary. "
                "Remedy: add it to vocab.json with that id."
            )


def template(slow: PreTrainedTokenizerBase) -> processors.TemplateProcessing:
    """The special tokens and types that the slow tokenizer puts around one text and two, found by asking it."""
    first, second = -1, -2
    tokens: dict[str, int] = {}

    def pieces(*ids: int) -> list[str]:
        made = slow.build_inputs_with_special_tokens(*([i] for i in ids))
        types = slow.create_token_type_ids_from_sequences(*([i] for i in ids))
        types += [types[-1]] * (len(made) - len(types))
        found = []
        for token_id, kind in zip(made, types, strict=False):
            name = {first: "$A", second: "$B"}.get(token_id)
            if name is None:
                name = slow.convert_ids_to_tokens(token_id)
                tokens[name] = token_id
            found.append(f"{name}:{kind}")
        return found

    single, pair = pieces(first), pieces(first, second)
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(tokens.items()))


# --- back to text ---------------------------------------------------------------------------------------------------


def decoding(*pairs: tuple[str, str]) -> decoders.Sequence:
    """All tokens joined, then patterns replaced one after the other."""
    return decoders.Sequence([decoders.Fuse(), *(decoders.Replace(Regex(old), new) for old, new in pairs)])
