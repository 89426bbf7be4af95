"""XLM's and FlauBERT's tokenizers, Python code (Moses, then BPE), as a `tokenizers` pipeline with the same ids.

Moses is a list of substitutions over the whole text that ends in a split at spaces. The normaliser here is that list,
with the sets of characters that sacremoses and this Python use. `tokenizers` replaces a match by a constant, so

- a group that stays is a lookaround, or the text before `\\K`;
- where a match must use up the character after it (Moses does not look at it again), a marker is set behind each match,
  then the change is made before markers, then markers go. The marker is a private-use character, which Moses deletes
  from text anyway.

What still differs: pairs cut to an odd number of tokens (where `tokenizers` gives the odd one to the longer text, or
the second), and the types of pairs without special tokens.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from ...runtime.errors import UnsupportedError
from .steps import (
    END,
    MARK,
    OTHER,
    START,
    Step,
    a_class,
    add_tokens,
    lower,
    python_class,
    remove,
    replace,
    template,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Slow tokenizer class: the language that it treats all text as.
LANGUAGES = {"FlaubertTokenizer": "fr", "XLMTokenizer": "en"}


def moses_backend(slow: PreTrainedTokenizerBase) -> Tokenizer:
    """The pipeline of a slow XLM or FlauBERT tokenizer.

    Raises:
        UnsupportedError: its merges make pieces that its vocabulary does not have.
    """
    language = LANGUAGES[type(slow).__name__]
    steps = replace("string", [(MARK, OTHER)])
    if language == "fr":
        steps += [*replace("string", [("``", '"'), ("''", '"')]), normalizers.NFC()]
        steps += lower() if slow.do_lowercase else []
    steps += _unicode_punctuation() + _normalize_punctuation(language)
    steps += remove(lambda c: unicodedata.category(c).startswith("C"))
    steps += _tokenize(language)
    if language != "fr" and slow.do_lowercase_and_remove_accent:
        steps += [*lower(), normalizers.NFD(), *remove(lambda c: unicodedata.category(c) == "Mn"), *lower()]
    backend = Tokenizer(merged_model(slow, dict(slow.encoder)))
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    add_tokens(backend, slow)
    backend.post_processor = template(slow)
    return backend


def merged_model(slow: PreTrainedTokenizerBase, vocabulary: dict[str, int]) -> models.BPE:
    """The merges of a slow tokenizer over a vocabulary where the last piece of a word ends in `</w>`.

    Raises:
        UnsupportedError: the vocabulary lacks pieces that the merges make.
    """
    merges = [pair for pair, _ in sorted(slow.bpe_ranks.items(), key=lambda entry: entry[1]) if len(pair) == 2]
    made = {left + right for left, right in merges}

    def arises(piece: str) -> bool:
        return piece in made or len(piece.removesuffix("</w>")) == 1

    merges = [pair for pair in merges if all(map(arises, pair))]
    lost = [pair for pair in merges if any(piece not in vocabulary for piece in (*pair, "".join(pair)))]
    if lost:
        some = ", ".join(" + ".join(pair) for pair in lost[:3])
        raise UnsupportedError(
            f"{len(lost)} merges of the tokenizer make or use pieces that its vocabulary does not have ({some}, ...). "
            "In Python such a piece becomes the unknown token after merging; other readers cannot do that. "
            "Remedy: add the pieces to vocab.json (and rows to the model's embeddings), or delete the merges."
        )
    return models.BPE(vocabulary, merges, unk_token=str(slow.unk_token), end_of_word_suffix="</w>")


# --- steps ----------------------------------------------------------------------------------------------------------


@functools.cache
def _moses(name: str) -> str:
    from sacremoses import MosesTokenizer

    return a_class(getattr(MosesTokenizer, name))


def _between(before: str, change: tuple[str, str], after: str) -> list[Step]:
    """Replace between two characters, of which the second is used up: `([before])old([after])`."""
    old, new = change
    return replace(
        "regex",
        [(rf"{before}{old}{after}\K", MARK), (rf"{old}(?={after}{MARK})", new), (MARK, "")],
    )


def _unicode_punctuation() -> list[Step]:
    """transformers' `replace_unicode_punct`."""
    space = python_class(r"\s")
    singles = dict(
        zip(
            "，、”“∶：？《》）！（；１」「０３２５６９７８４～’━〈〉【】％",
            ',,"":' + ':?"")!(;1""0325697' + "84~'-<>[]%",
            strict=True,
        )
    )
    steps = replace("string", [("，", ",")]) + replace("regex", [(f"。[{space}]*", ". "), (f"．[{space}]*", ". ")])
    return steps + replace("string", [*singles.items(), ("…", "...")])


def _normalize_punctuation(language: str) -> list[Step]:
    """sacremoses' `MosesPunctNormalizer(lang).normalize`."""
    digit, space = python_class(r"\d"), python_class(r"\s")
    steps = replace("string", [("\r", ""), ("(", " ("), (")", ") ")]) + replace("regex", [(" +", " ")])
    steps += replace(
        "regex", [(r"(?<=\)) (?=[.!:?;,])", ""), (r"\( ", "("), (r" \)", ")"), (f"(?<=[{digit}]) (?=%)", "")]
    )
    steps += replace(
        "string", [(" :", ":"), (" ;", ";"), ("`", "'"), ("''", ' " '), ("„", '"'), ("“", '"'), ("”", '"')]
    )
    steps += replace("string", [("–", "-"), ("—", " - ")]) + replace("regex", [(" +", " ")])
    steps += replace("string", [("´", "'"), ("‘", "'"), ("‚", "'"), ("’", "'"), ("''", '"'), ("´´", '"'), ("…", "...")])
    quotes = [
        ("\u00a0«\u00a0", '"'),
        ("«\u00a0", '"'),
        ("«", '"'),
        ("\u00a0»\u00a0", '"'),
        ("\u00a0»", '"'),
        ("»", '"'),
    ]
    steps += replace("string", quotes)
    steps += replace("string", [("\u00a0%", "%"), ("nº\u00a0", "nº "), ("\u00a0:", ":"), ("\u00a0ºC", " ºC")])
    steps += replace(
        "string", [("\u00a0cm", " cm"), ("\u00a0?", "?"), ("\u00a0!", "!"), ("\u00a0;", ";"), (",\u00a0", ", ")]
    )
    steps += replace("regex", [(" +", " ")])
    if language == "en":  # a quote before commas and stops goes behind them
        steps += replace("regex", [(r'"[,.]+\K', MARK), (f'"(?=[,.]+{MARK})', ""), (MARK, '"')])
    else:  # a quote behind them goes before, but not at the end of the text
        steps += replace("string", [(',"', '",')])
        tail = f"[{space}]*[^<{MARK}]"
        steps += replace("regex", [(rf'\.+"{tail}\K', MARK), (rf'(?<!\.)(?=\.+"{tail}{MARK})', '"')])
        steps += replace("regex", [(rf'(?<=\.)"(?={tail}{MARK})', ""), (MARK, "")])
    steps += _between(f"[{digit}]", ("\u00a0", "," if language == "fr" else "."), f"[{digit}]")
    return [*steps, *_trimmed()]


def _trimmed() -> list[Step]:
    """Python's `strip()`; the library's own step has another set of spaces."""
    space = python_class(r"\s")
    return replace("regex", [(f"{START}[{space}]+", ""), (f"[{space}]+{END}", "")])


def _tokenize(language: str) -> list[Step]:
    """sacremoses' `MosesTokenizer(lang).tokenize`, up to its last split at spaces."""
    space, number, alpha = python_class(r"\s"), _moses("IsN"), _moses("IsAlpha")
    single = replace("regex", [(f"[{space}]+", " ")])
    apart = f"[^{_moses('IsAlnum')}{space}.'`,\\-]"
    steps = [*single, *replace("regex", [(r"[\x00-\x1f]", "")]), *_trimmed()]
    steps += replace("regex", [(f"(?={apart})", " "), (f"(?<={apart})", " ")])
    steps += replace("regex", [(r"(?<!\.)(?=\.\.)", " "), (r"\.\.+\K", " ")])
    steps += replace(
        "regex", [(rf"[^{number}]\K,", " , "), (f",(?=[^{number}])", " , "), (f"(?<=[{number}]),{END}", " , ")]
    )
    steps += _apostrophes(language, alpha, number)
    steps += [*single, *_trimmed(), *_final_stops(language), *single, *_trimmed()]
    # Moses writes runs of stops as DOT...MULTI meanwhile, so that text which holds those letters loses them.
    held = [(r"DOT(?=(?:DOT)*MULTI)", f".{MARK}"), (f"{MARK}MULTI", ""), (MARK, "")]
    return steps + replace("regex", [(rf"\.' ?{END}", " . ' "), *held])


def _apostrophes(language: str, alpha: str, number: str) -> list[Step]:
    letter, other = f"[{alpha}]", f"[^{alpha}]"
    if language == "fr":
        return [
            *_between(other, ("'", " ' "), other),
            *_between(other, ("'", " ' "), letter),
            *_between(letter, ("'", " ' "), other),
            *_between(letter, ("'", "' "), letter),
        ]
    return [
        *_between(other, ("'", " ' "), other),
        *_between(f"[^{alpha}{number}]", ("'", " ' "), letter),
        *_between(letter, ("'", " ' "), other),
        *_between(letter, ("'", " '"), letter),
        *_between(f"[{number}]", ("'", " '"), "s"),
    ]


def _final_stops(language: str) -> list[Step]:
    """A full stop ends its word, but not after an abbreviation, and not before a word in lower case."""
    from sacremoses import MosesTokenizer

    moses = MosesTokenizer(lang=language)
    numeric = set(moses.NUMERIC_ONLY_PREFIXES)
    plain = {prefix for prefix in moses.NONBREAKING_PREFIXES if prefix not in numeric and " " not in prefix}

    def any_of(prefixes: set[str]) -> str:
        return "|".join(re.escape(prefix) for prefix in sorted(prefixes, key=lambda p: (-len(p), p)))

    guards = f"(?!(?:{any_of(plain)})\\.(?: |{END}))"
    if numeric:
        guards += rf"(?!(?:{any_of(numeric)})\. [0-9])"
    alpha = _moses("IsAlpha")
    # A word with stops inside and a letter anywhere keeps its last one.
    word = f"(?:[^ .]+|[^ {alpha}]*[^ .{alpha}])"
    lower = _moses("IsLower")
    return replace("regex", [(rf"(?<![^ ]){guards}{word}\K\.(?= [^{lower}]|{END})", " .")])
