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
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ...runtime.errors import UnsupportedError
from .classes import LAST, ranges
from .patterns import written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Slow tokenizer class: the language it treats all text as, whether pipelines may run before and after.
LANGUAGES = {"FlaubertTokenizer": "fr", "XLMTokenizer": "en"}

_MARK, _OTHER = "\ue000", "\ue001"
_END = r"(?![\x{0}-\x{10FFFF}])"

Step = normalizers.Normalizer


def moses_backend(slow: PreTrainedTokenizerBase) -> Tokenizer:
    """The pipeline of a slow XLM or FlauBERT tokenizer.

    Raises:
        UnsupportedError: its merges make pieces that its vocabulary does not have.
    """
    language = LANGUAGES[type(slow).__name__]
    steps = _replace("string", [(_MARK, _OTHER)])
    if language == "fr":
        steps += [*_replace("string", [("``", '"'), ("''", '"')]), normalizers.NFC()]
        steps += _lower() if slow.do_lowercase else []
    steps += _unicode_punctuation() + _normalize_punctuation(language)
    steps += _remove(lambda c: unicodedata.category(c).startswith("C"))
    steps += _tokenize(language)
    if language != "fr" and slow.do_lowercase_and_remove_accent:
        steps += [*_lower(), normalizers.NFD(), *_remove(lambda c: unicodedata.category(c) == "Mn"), *_lower()]
    backend = Tokenizer(_model(slow))
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    for token_id, token in sorted(slow.added_tokens_decoder.items()):
        entry = AddedToken(
            token.content, special=token.special, normalized=False, lstrip=token.lstrip, rstrip=token.rstrip
        )
        backend.add_special_tokens([entry]) if token.special else backend.add_tokens([entry])
        if backend.token_to_id(token.content) != token_id:
            raise UnsupportedError(
                f"The added token {token.content!r} has id {token_id}, which leaves a gap after the vocabulary. "
                "Remedy: add it to vocab.json with that id."
            )
    backend.post_processor = _template(slow)
    return backend


def _model(slow: PreTrainedTokenizerBase) -> models.BPE:
    vocabulary: dict[str, int] = dict(slow.encoder)
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


def _template(slow: PreTrainedTokenizerBase) -> processors.TemplateProcessing:
    """The special tokens and types that the slow tokenizer puts around one text and two, found by asking it."""
    first, second = -1, -2
    tokens: dict[str, int] = {}

    def pieces(*ids: int) -> str:
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
        return " ".join(found)

    single, pair = pieces(first), pieces(first, second)
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(tokens.items()))


# --- sets of characters ---------------------------------------------------------------------------------------------


@functools.cache
def _characters() -> str:
    return "".join(map(chr, [*range(0xD800), *range(0xE000, LAST + 1)]))


def _set(characters: Iterable[str]) -> str:
    """A class without its brackets."""
    return written(ranges(map(ord, characters)))[1:-1]


@functools.cache
def _python(expression: str) -> str:
    """What Python's `re` takes for a class, without brackets."""
    return _set(re.findall(expression, _characters()))


@functools.cache
def _moses(name: str) -> str:
    from sacremoses import MosesTokenizer

    return _set(getattr(MosesTokenizer, name))


# --- steps ----------------------------------------------------------------------------------------------------------


def _replace(kind: str, pairs: Iterable[tuple[str, str]]) -> list[Step]:
    return [normalizers.Replace(Regex(old) if kind == "regex" else old, new) for old, new in pairs]


def _remove(unwanted: Callable[[str], bool]) -> list[Step]:
    return _replace("regex", [(f"[{_set(filter(unwanted, _characters()))}]", "")])


def _between(before: str, change: tuple[str, str], after: str) -> list[Step]:
    """Replace between two characters, of which the second is used up: `([before])old([after])`."""
    old, new = change
    return _replace(
        "regex",
        [(rf"{before}{old}{after}\K", _MARK), (rf"{old}(?={after}{_MARK})", new), (_MARK, "")],
    )


@functools.cache
def _sigma() -> str:
    """Python writes Σ at the end of a word ς, which no other lower-casing of single characters does."""
    letters = {c for c in _characters() if f"{c}Σ".lower()[-1] == "ς"}
    ignored = _set(c for c in _characters() if c not in letters and f"A{c}Σ".lower()[-1] == "ς")
    cased = _set(letters)
    return rf"[{cased}][{ignored}]*\KΣ(?![{ignored}]*[{cased}])"


def _lower() -> list[Step]:
    return [*_replace("regex", [(_sigma(), "ς")]), normalizers.Lowercase()]


def _unicode_punctuation() -> list[Step]:
    """transformers' `replace_unicode_punct`."""
    space = _python(r"\s")
    singles = dict(
        zip(
            "，、”“∶：？《》）！（；１」「０３２５６９７８４～’━〈〉【】％",
            ',,"":' + ':?"")!(;1""0325697' + "84~'-<>[]%",
            strict=True,
        )
    )
    steps = _replace("string", [("，", ",")]) + _replace("regex", [(f"。[{space}]*", ". "), (f"．[{space}]*", ". ")])
    return steps + _replace("string", [*singles.items(), ("…", "...")])


def _normalize_punctuation(language: str) -> list[Step]:
    """sacremoses' `MosesPunctNormalizer(lang).normalize`."""
    digit, space = _python(r"\d"), _python(r"\s")
    steps = _replace("string", [("\r", ""), ("(", " ("), (")", ") ")]) + _replace("regex", [(" +", " ")])
    steps += _replace(
        "regex", [(r"(?<=\)) (?=[.!:?;,])", ""), (r"\( ", "("), (r" \)", ")"), (f"(?<=[{digit}]) (?=%)", "")]
    )
    steps += _replace(
        "string", [(" :", ":"), (" ;", ";"), ("`", "'"), ("''", ' " '), ("„", '"'), ("“", '"'), ("”", '"')]
    )
    steps += _replace("string", [("–", "-"), ("—", " - ")]) + _replace("regex", [(" +", " ")])
    steps += _replace(
        "string", [("´", "'"), ("‘", "'"), ("‚", "'"), ("’", "'"), ("''", '"'), ("´´", '"'), ("…", "...")]
    )
    quotes = [
        ("\u00a0«\u00a0", '"'),
        ("«\u00a0", '"'),
        ("«", '"'),
        ("\u00a0»\u00a0", '"'),
        ("\u00a0»", '"'),
        ("»", '"'),
    ]
    steps += _replace("string", quotes)
    steps += _replace("string", [("\u00a0%", "%"), ("nº\u00a0", "nº "), ("\u00a0:", ":"), ("\u00a0ºC", " ºC")])
    steps += _replace(
        "string", [("\u00a0cm", " cm"), ("\u00a0?", "?"), ("\u00a0!", "!"), ("\u00a0;", ";"), (",\u00a0", ", ")]
    )
    steps += _replace("regex", [(" +", " ")])
    if language == "en":  # a quote before commas and stops goes behind them
        steps += _replace("regex", [(r'"[,.]+\K', _MARK), (f'"(?=[,.]+{_MARK})', ""), (_MARK, '"')])
    else:  # a quote behind them goes before, but not at the end of the text
        steps += _replace("string", [(',"', '",')])
        tail = f"[{space}]*[^<{_MARK}]"
        steps += _replace("regex", [(rf'\.+"{tail}\K', _MARK), (rf'(?<!\.)(?=\.+"{tail}{_MARK})', '"')])
        steps += _replace("regex", [(rf'(?<=\.)"(?={tail}{_MARK})', ""), (_MARK, "")])
    steps += _between(f"[{digit}]", ("\u00a0", "," if language == "fr" else "."), f"[{digit}]")
    return [*steps, *_trimmed()]


def _trimmed() -> list[Step]:
    """Python's `strip()`; the library's own step has another set of spaces."""
    space = _python(r"\s")
    return _replace("regex", [(rf"(?<![\x{{0}}-\x{{10FFFF}}])[{space}]+", ""), (f"[{space}]+{_END}", "")])


def _tokenize(language: str) -> list[Step]:
    """sacremoses' `MosesTokenizer(lang).tokenize`, up to its last split at spaces."""
    space, number, alpha = _python(r"\s"), _moses("IsN"), _moses("IsAlpha")
    single = _replace("regex", [(f"[{space}]+", " ")])
    apart = f"[^{_moses('IsAlnum')}{space}.'`,\\-]"
    steps = [*single, *_replace("regex", [(r"[\x00-\x1f]", "")]), *_trimmed()]
    steps += _replace("regex", [(f"(?={apart})", " "), (f"(?<={apart})", " ")])
    steps += _replace("regex", [(r"(?<!\.)(?=\.\.)", " "), (r"\.\.+\K", " ")])
    steps += _replace(
        "regex", [(rf"[^{number}]\K,", " , "), (f",(?=[^{number}])", " , "), (f"(?<=[{number}]),{_END}", " , ")]
    )
    steps += _apostrophes(language, alpha, number)
    steps += [*single, *_trimmed(), *_final_stops(language), *single, *_trimmed()]
    # Moses writes runs of stops as DOT...MULTI meanwhile, so that text which holds those letters loses them.
    held = [(r"DOT(?=(?:DOT)*MULTI)", f".{_MARK}"), (f"{_MARK}MULTI", ""), (_MARK, "")]
    return steps + _replace("regex", [(rf"\.' ?{_END}", " . ' "), *held])


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

    guards = f"(?!(?:{any_of(plain)})\\.(?: |{_END}))"
    if numeric:
        guards += rf"(?!(?:{any_of(numeric)})\. [0-9])"
    alpha = _moses("IsAlpha")
    # A word with stops inside and a letter anywhere keeps its last one.
    word = f"(?:[^ .]+|[^ {alpha}]*[^ .{alpha}])"
    lower = _moses("IsLower")
    return _replace("regex", [(rf"(?<![^ ]){guards}{word}\K\.(?= [^{lower}]|{_END})", " .")])


def rebuilt(slow: PreTrainedTokenizerBase) -> Any:
    """The slow tokenizer as a fast one of transformers, with the same special tokens and settings."""
    from transformers import PreTrainedTokenizerFast

    roles = ("unk", "bos", "eos", "sep", "pad", "cls", "mask")
    named = {
        f"{role}_token": str(token) for role in roles if (token := getattr(slow, f"{role}_token", None)) is not None
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=moses_backend(slow),
        model_max_length=slow.model_max_length,
        model_input_names=list(slow.model_input_names),
        padding_side=slow.padding_side,
        truncation_side=slow.truncation_side,
        clean_up_tokenization_spaces=bool(slow.clean_up_tokenization_spaces),
        **named,
    )
