"""From `tokenizer.json` to `tokenizer_spec.json`: every default stated, every composite step resolved into simple ones.

`docs/tokenizer-spec.md` is the page that readers are written from. What has no place on it is refused here.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...runtime.errors import UnsupportedError
from ...runtime.tokenizer_spec import SPEC_VERSION
from . import classes
from .patterns import GPT2, KNOWN, portable

Json = dict[str, Any]

_SPLIT_BEHAVIOUR = {
    "Removed": "removed",
    "Isolated": "isolated",
    "MergedWithPrevious": "merged_with_previous",
    "MergedWithNext": "merged_with_next",
    "Contiguous": "contiguous",
}


@dataclass
class _Context:
    """What steps leave for the whole: the character classes that they refer to."""

    classes: dict[str, list[list[int]]] = field(default_factory=dict)

    def named(self, name: str) -> Json:
        self.classes[name] = [list(span) for span in classes.get(name)]
        return {"class": name}


def specification(
    data: Json, *, inputs: tuple[str, ...], max_length: int, sides: tuple[str, str], pad: Json, cleanup: bool
) -> Json:
    """The specification of a tokenizer.

    Args:
        data: the content of `tokenizer.json`.
        inputs: the model inputs to be made, in order.
        max_length: longest input in tokens.
        sides: where truncation cuts and where padding goes (`left` or `right`).
        pad: `id`, `type_id` and `multiple_of` (or None) of padding.
        cleanup: whether decoded text loses the spaces before punctuation.

    Raises:
        UnsupportedError: a step has no faithful form; names it and what to do.
    """
    context = _Context()
    post = post_processor(data.get("post_processor"))
    vocabulary, model = _model(data["model"])
    return {
        "format": "palmtop-tokenizer",
        "spec_version": SPEC_VERSION,
        "model": model,
        "vocabulary": vocabulary,
        "added_tokens": [_added(token) for token in sorted(data["added_tokens"], key=lambda token: token["id"])],
        "normalizer": normalizer_steps(data, context),
        "pre_tokenizer": [
            step
            for entry in _flat(data.get("pre_tokenizer"), "pretokenizers")
            for step in _pre_tokenizer(entry, context)
        ],
        "post_processor": post,
        "decoder": _decoder(data.get("decoder")),
        "cleanup": cleanup and model["type"] != "bpe",
        "truncation": {"max_length": max_length, "side": sides[0], "strategy": "longest_first"},
        "padding": {"side": sides[1], **pad},
        "inputs": list(inputs),
        "classes": {**dict(sorted(context.classes.items())), "whitespace": _spans("whitespace"), "word": _spans(r"\w")},
    }


def _spans(name: str) -> list[list[int]]:
    return [list(span) for span in classes.get(name)]


def _refuse(part: str, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"The tokenizer's {part} {what}, which has no form that small readers know (docs/tokenizer-spec.md). "
        "Remedy: replace that step in tokenizer.json by one of the page with the same effect."
    )


def _flat(entry: Json | None, key: str) -> list[Json]:
    if entry is None:
        return []
    if entry["type"] == "Sequence":
        return [step for inner in entry[key] for step in _flat(inner, key)]
    return [entry]


def _added(token: Json) -> Json:
    flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
    return {"id": token["id"], "content": token["content"], **{flag: bool(token[flag]) for flag in flags}}


# --- the model ------------------------------------------------------------------------------------------------------


def _model(model: Json) -> tuple[list[str | None], Json]:
    kind = model["type"]
    if kind == "Unigram":
        pieces = model["vocab"]
        return [piece for piece, _ in pieces], {
            "type": "unigram",
            "scores": [score for _, score in pieces],
            "unk_id": model["unk_id"],
            "byte_fallback": bool(model.get("byte_fallback")),
        }
    vocabulary = _by_id(model["vocab"])
    unk = model.get("unk_token")
    unk_id = model["vocab"].get(unk) if unk is not None else None
    if kind == "WordPiece":
        return vocabulary, {
            "type": "wordpiece",
            "unk_id": _needed(unk_id, unk),
            "continuing_subword_prefix": model["continuing_subword_prefix"],
            "max_input_chars_per_word": model["max_input_chars_per_word"],
        }
    if kind == "WordLevel":
        return vocabulary, {"type": "wordlevel", "unk_id": _needed(unk_id, unk)}
    if kind != "BPE":
        raise _refuse("model", f"is of the kind '{kind}'")
    if model.get("dropout"):
        raise _refuse("model", "drops merges at random")
    return vocabulary, {
        "type": "bpe",
        "merges": [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in model["merges"]],
        "unk_id": unk_id,
        "fuse_unk": bool(model.get("fuse_unk")),
        "byte_fallback": bool(model.get("byte_fallback")),
        "continuing_subword_prefix": model.get("continuing_subword_prefix") or "",
        "end_of_word_suffix": model.get("end_of_word_suffix") or "",
        "ignore_merges": bool(model.get("ignore_merges")),
    }


def _needed(unk_id: int | None, unk: str | None) -> int:
    if unk_id is None:
        raise UnsupportedError(
            f"The tokenizer's token for unknown words, {unk!r}, is not in its vocabulary, so that unknown words are an "
            "error. Remedy: add the token to the vocabulary, or name another as unk_token."
        )
    return unk_id


def _by_id(vocab: dict[str, int]) -> list[str | None]:
    found: list[str | None] = [None] * (max(vocab.values(), default=-1) + 1)
    for token, token_id in vocab.items():
        if found[token_id] is not None:
            raise _refuse("vocabulary", f"has two tokens of id {token_id}")
        found[token_id] = token
    return found


# --- normalisation --------------------------------------------------------------------------------------------------


def normalizer_steps(data: Json, context: _Context | None = None) -> list[Json]:
    """The normaliser of a `tokenizer.json` as simple steps."""
    context = context or _Context()
    return [step for entry in _flat(data.get("normalizer"), "normalizers") for step in _normalizer(entry, context)]


def _normalizer(entry: Json, context: _Context) -> list[Json]:
    kind = entry["type"]
    if kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase"):
        return [{"type": kind.lower()}]
    if kind == "BertNormalizer":
        return _bert(entry, context)
    if kind == "StripAccents":
        return [_replace(context.named("accents"), "")]
    if kind == "Nmt":
        return [_replace(context.named("nmt_removed"), ""), _replace(context.named("nmt_spaces"), " ")]
    if kind == "Strip":
        return [{"type": "strip", "left": entry["strip_left"], "right": entry["strip_right"]}]
    if kind == "Prepend":
        return [{"type": "prepend", "content": entry["prepend"]}]
    if kind == "Replace":
        matcher, keep = _matcher(entry["pattern"])
        return [{**_replace(matcher, entry["content"]), "keep": keep}]
    if kind == "Precompiled":
        context.named("extenders")
        context.named("controls")
        charsmap = entry["precompiled_charsmap"]
        data = charsmap if isinstance(charsmap, str) else base64.b64encode(bytes(charsmap)).decode()
        return [{"type": "precompiled", "charsmap": data}]
    raise _refuse("normalizer", f"has the step '{kind}'")


def _bert(entry: Json, context: _Context) -> list[Json]:
    steps: list[Json] = []
    if entry["clean_text"]:
        steps += [_replace(context.named("bert_removed"), ""), _replace(context.named("bert_spaces"), " ")]
    if entry["handle_chinese_chars"]:
        steps.append({"type": "surround", "match": context.named("bert_chinese"), "content": " "})
    strip = entry["strip_accents"]
    if entry["lowercase"] if strip is None else strip:
        steps += [{"type": "nfd"}, _replace(context.named("bert_accents"), "")]
    if entry["lowercase"]:
        steps.append({"type": "lowercase"})
    return steps


def _replace(matcher: Json, content: str) -> Json:
    return {"type": "replace", "match": matcher, "content": content, "keep": False}


def _matcher(pattern: Json) -> tuple[Json, bool]:
    """A pattern of `tokenizer.json`, and whether what it starts with stays."""
    if "String" in pattern:
        return {"literal": pattern["String"]}, False
    source = pattern["Regex"]
    found = portable(source)
    return {"regex": found.pattern, "name": KNOWN.get(source), "source": source}, found.keep


# --- splitting ------------------------------------------------------------------------------------------------------


def _split(matcher: Json, behaviour: str, invert: bool = False) -> Json:
    return {"type": "split", "match": matcher, "behavior": _SPLIT_BEHAVIOUR[behaviour], "invert": invert}


def _pre_tokenizer(entry: Json, context: _Context) -> list[Json]:
    kind = entry["type"]
    if kind == "ByteLevel":
        steps: list[Json] = [{"type": "prepend_space"}] if entry["add_prefix_space"] else []
        if entry.get("use_regex", True):
            steps.append(_split(_matcher({"Regex": GPT2})[0], "Isolated"))
        return [*steps, {"type": "bytes"}]
    if kind == "Metaspace":
        if "prepend_scheme" not in entry:
            raise _refuse("pre-tokenizer", "has a Metaspace of an older format")
        return [
            {key: entry.get(key, True) for key in ("replacement", "prepend_scheme", "split")} | {"type": "metaspace"}
        ]
    if kind == "BertPreTokenizer":
        return [_split(context.named("whitespace"), "Removed"), _split(context.named("punctuation"), "Isolated")]
    if kind == "WhitespaceSplit":
        return [_split(context.named("whitespace"), "Removed")]
    if kind == "Whitespace":
        return [_split(_matcher({"Regex": r"\w+|[^\w\s]+"})[0], "Removed", invert=True)]
    if kind == "Punctuation":
        return [_split(context.named("punctuation"), entry["behavior"])]
    if kind == "Digits":
        return [_split(context.named("numeric"), "Isolated" if entry["individual_digits"] else "Contiguous")]
    if kind == "CharDelimiterSplit":
        return [_split({"literal": entry["delimiter"]}, "Removed")]
    if kind == "Split":
        matcher, keep = _matcher(entry["pattern"])
        if keep:
            raise _refuse("pre-tokenizer", "has \\K in a pattern")
        return [_split(matcher, entry["behavior"], entry["invert"])]
    if kind == "FixedLength":
        return [{"type": "fixed_length", "length": entry["length"]}]
    raise _refuse("pre-tokenizer", f"has the step '{kind}'")


# --- special tokens around, and back to text ------------------------------------------------------------------------


def _special(token: Json) -> Json:
    return {"special": token["id"], "type_id": token["type_id"]}


def post_processor(entry: Json | None) -> Json:
    """Templates of special tokens, and what happens to offsets."""
    found: Json = {
        "trim_offsets": False,
        "trim_keeps_prefix_space": False,
        "single": [{"sequence": "A", "type_id": 0}],
        "pair": [{"sequence": "A", "type_id": 0}, {"sequence": "B", "type_id": 1}],
    }
    templates = 0
    for step in _flat(entry, "processors"):
        kind = step["type"]
        if kind in ("ByteLevel", "RobertaProcessing"):
            found["trim_offsets"] = step["trim_offsets"]
            found["trim_keeps_prefix_space"] = step["add_prefix_space"]
        if kind in ("BertProcessing", "RobertaProcessing", "TemplateProcessing"):
            templates += 1
            found |= _template(step)
        elif kind != "ByteLevel":
            raise _refuse("post-processor", f"has the step '{kind}'")
    if templates > 1:
        raise _refuse("post-processor", "puts special tokens around twice")
    return found


def _template(step: Json) -> Json:
    if step["type"] == "TemplateProcessing":
        ids = {name: entry["ids"] for name, entry in step["special_tokens"].items()}
        return {key: [piece for item in step[key] for piece in _pieces(item, ids)] for key in ("single", "pair")}
    bert = step["type"] == "BertProcessing"
    cls, sep = ({"special": step[key][1], "type_id": 0} for key in ("cls", "sep"))
    first, second = {"sequence": "A", "type_id": 0}, {"sequence": "B", "type_id": int(bert)}
    last = {**sep, "type_id": int(bert)}
    return {"single": [cls, first, sep], "pair": [cls, first, sep, *([] if bert else [sep]), second, last]}


def _pieces(item: Json, ids: dict[str, list[int]]) -> list[Json]:
    if "Sequence" in item:
        return [{"sequence": item["Sequence"]["id"], "type_id": item["Sequence"]["type_id"]}]
    token = item["SpecialToken"]
    return [{"special": token_id, "type_id": token["type_id"]} for token_id in ids[token["id"]]]


_DECODERS: dict[str, Callable[[Json], list[Json]]] = {
    "ByteLevel": lambda step: [{"type": "byte_level"}],
    "WordPiece": lambda step: [{"type": "wordpiece", "prefix": step["prefix"], "cleanup": step["cleanup"]}],
    "BPEDecoder": lambda step: [{"type": "bpe", "suffix": step["suffix"]}],
    "ByteFallback": lambda step: [{"type": "byte_fallback"}],
    "Fuse": lambda step: [{"type": "fuse"}],
    "Strip": lambda step: [{"type": "strip", **{key: step[key] for key in ("content", "start", "stop")}}],
    "Metaspace": lambda step: [
        {
            "type": "metaspace",
            "replacement": step["replacement"],
            "strip": step.get("prepend_scheme", "always") != "never",
        }
    ],
}


def _decoder(entry: Json | None) -> list[Json] | None:
    """The steps; None: tokens are joined by spaces."""
    if entry is None:
        return None
    steps: list[Json] = []
    for step in _flat(entry, "decoders"):
        if step["type"] == "Replace":
            matcher, keep = _matcher(step["pattern"])
            steps.append({"type": "replace", "match": matcher, "content": step["content"], "keep": keep})
        elif step["type"] in _DECODERS:
            steps += _DECODERS[step["type"]](step)
        else:
            raise _refuse("decoder", f"has the step '{step['type']}'")
    return steps
