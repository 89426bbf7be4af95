"""The tokenizer folder of a bundle: vocabularies that phones can read, and what else a reader must know."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from ..runtime.errors import UnsupportedError
from ..runtime.manifest import TokenizerSpec, canonical_json
from ..runtime.tokenizer import Tokenizer
from ..runtime.tokenizer_golden import GOLDEN_TOKENS_NAME, TokenizerCase, write_tokenizer_golden
from ..runtime.tokenizer_spec import SPEC_NAME
from .source import Source, quiet_transformers
from .texts import SENTENCES
from .tokenization.golden import tokenizer_cases
from .tokenization.legacy import (
    SENTENCEPIECE,
    write_executorch,
    write_sentencepiece,
    write_vocab_json,
    write_vocab_txt,
)
from .tokenization.readers import COMPATIBILITY_NAME, compatibility
from .tokenization.spec import post_processor, specification

FOLDER = "tokenizer"

# transformers 5 names generic tokenizers after their backend; device-side readers know these classes.
_GENERIC = {"TokenizersBackend", "PreTrainedTokenizerFast", "PythonBackend", ""}
# The one that reads tokenizer.json as it is, and that readers on devices take for BPE.
_PLAIN = "PreTrainedTokenizerFast"
_ROLES = ("pad", "cls", "sep", "mask", "unk", "bos", "eos")
# Settings that say where or how the checkpoint was loaded, not how it tokenizes.
_NOT_CARRIED = (
    "name_or_path",
    "is_local",
    "local_files_only",
    "backend",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
)


def tokenizer_inputs(source: Source, takes: set[str]) -> tuple[str, ...]:
    """The inputs that the tokenizer makes and the model takes, in the tokenizer's order."""
    return tuple(name for name in source.tokenizer.model_input_names if name in takes)


def carry_tokenizer(source: Source, root: Path, inputs: tuple[str, ...], max_length: int) -> TokenizerSpec:
    """Write the tokenizer folder into a bundle.

    Args:
        inputs: the model inputs to be made from text.
        max_length: longest input in tokens, special ones included.

    Raises:
        UnsupportedError: the tokenizer has no form that works without Python.
    """
    tokenizer, folder = source.tokenizer, root / FOLDER
    folder.mkdir(parents=True)
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    data["truncation"] = data["padding"] = None  # state of the last call in transformers, not part of the vocabulary
    kind = _kind(data)
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    name = type(tokenizer).__name__.removesuffix("Fast")
    concrete = _concrete(kind, data) if name in _GENERIC else name
    if source.slow_tokenizer is not None:  # the usual classes would put their own steps in place of the rebuilt ones
        concrete = _PLAIN
    (folder / "tokenizer_config.json").write_text(
        canonical_json(_config(source, concrete, max_length, inputs)), encoding="utf-8"
    )
    _write_vocabulary(source, folder, data, kind)
    _write_chat_templates(folder, tokenizer.chat_template)
    special = {role: getattr(tokenizer, f"{role}_token") for role in _ROLES}
    special = {role: str(token) for role, token in special.items() if token is not None}
    pad = tokenizer.pad_token_id or 0
    spec = specification(
        data,
        inputs=inputs,
        max_length=max_length,
        sides=(tokenizer.truncation_side, tokenizer.padding_side),
        pad={"id": pad, "type_id": tokenizer.pad_token_type_id, "multiple_of": None},
        cleanup=bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)),
    )
    (folder / SPEC_NAME).write_text(
        json.dumps(spec, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8"
    )
    padding = {"input_ids": pad, "attention_mask": 0, "token_type_ids": tokenizer.pad_token_type_id}
    return TokenizerSpec(
        path=FOLDER,
        kind=kind,
        tokenizer_class=concrete,
        max_length=max_length,
        truncation_side=tokenizer.truncation_side,
        padding_side=tokenizer.padding_side,
        pad_to_multiple_of=None,
        special_tokens=special,
        special_ids={role: tokenizer.convert_tokens_to_ids(token) for role, token in special.items()},
        inputs=inputs,
        input_pad={name: padding.get(name, 0) for name in inputs},
    )


def _kind(data: dict[str, Any]) -> str:
    kind = data["model"]["type"]
    if kind == "BPE":
        steps = json.dumps([data.get("pre_tokenizer"), data.get("decoder")])
        return "byte-level-bpe" if "ByteLevel" in steps else "bpe"
    known = {"WordPiece": "wordpiece", "Unigram": "unigram", "WordLevel": "wordlevel"}
    if kind not in known:
        raise UnsupportedError(
            f"A '{kind}' tokenizer cannot be carried to a phone. Known: BPE, WordPiece, Unigram, WordLevel. "
            "Remedy: retrain or convert the tokenizer to one of these."
        )
    return known[kind]


def _config(source: Source, concrete: str, max_length: int, inputs: tuple[str, ...]) -> dict[str, Any]:
    path = source.folder / "tokenizer_config.json"
    original = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    config = {key: value for key, value in original.items() if key not in _NOT_CARRIED and value is not None}
    tokenizer = source.tokenizer
    config.update(
        tokenizer_class=concrete,
        model_max_length=max_length,
        model_input_names=list(inputs),
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        clean_up_tokenization_spaces=bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)),
    )
    config.update(_bert_settings(tokenizer))
    config["added_tokens_decoder"] = {
        str(i): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for i, token in sorted(tokenizer.added_tokens_decoder.items())
    }
    for role in _ROLES:
        token = getattr(tokenizer, f"{role}_token")
        if token is not None:
            config[f"{role}_token"] = str(token)
    return config


def _bert_settings(tokenizer: Any) -> dict[str, Any]:
    """What readers of WordPiece take from the settings rather than from tokenizer.json; absent, they lower-case."""
    normalizer = json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"] or {}
    if normalizer.get("type") != "BertNormalizer":
        return {}
    found = {"do_lower_case": normalizer["lowercase"], "tokenize_chinese_chars": normalizer["handle_chinese_chars"]}
    if normalizer["strip_accents"] is not None:
        found["strip_accents"] = normalizer["strip_accents"]
    return found


def _concrete(kind: str, data: dict[str, Any]) -> str:
    """The class that rebuilds this tokenizer from its vocabulary, special tokens around text included."""
    single = [
        "special" if "special" in piece else "text" for piece in post_processor(data.get("post_processor"))["single"]
    ]
    if kind == "wordpiece":
        return "BertTokenizer" if single == ["special", "text", "special"] else _PLAIN
    if kind == "unigram":
        return "T5Tokenizer" if single == ["text", "special"] else "XLMRobertaTokenizer"
    if kind == "byte-level-bpe":
        return "GPT2Tokenizer" if single == ["text"] and data["normalizer"] is None else _PLAIN
    if kind == "bpe" and data["model"].get("byte_fallback"):
        return "LlamaTokenizer"
    return _PLAIN


def _write_vocabulary(source: Source, folder: Path, data: dict[str, Any], kind: str) -> None:
    """The files that readers from before `tokenizer.json` ask for, and ExecuTorch's variant."""
    if kind in ("wordpiece", "wordlevel"):
        write_vocab_txt(folder, source.tokenizer.get_vocab())  # with the tokens that were added to it
    elif kind == "byte-level-bpe" or data["model"].get("end_of_word_suffix"):
        write_vocab_json(folder, data["model"], header=source.slow_tokenizer is None)
    write_executorch(folder, data)
    for name in SENTENCEPIECE:
        if (source.folder / name).is_file():
            (folder / name).write_bytes((source.folder / name).read_bytes())
    if source.slow_tokenizer is not None:
        _copy_original(source, folder)
    elif kind in ("unigram", "bpe") and not any(folder.glob("*.model")):
        write_sentencepiece(folder, data, _bare_ids(source, SENTENCES))


def _copy_original(source: Source, folder: Path) -> None:
    """The vocabulary files of a Python tokenizer, where nothing of their names was written."""
    for name in getattr(source.slow_tokenizer, "vocab_files_names", {}).values():
        original, copy = source.folder / name, folder / name
        if original.is_file() and not copy.exists():
            copy.write_bytes(original.read_bytes())


def _write_chat_templates(folder: Path, templates: str | dict[str, str] | None) -> None:
    """Where transformers puts them: the usual one beside the vocabulary, others in a folder."""
    named = {"default": templates} if isinstance(templates, str) else templates or {}
    for name, template in named.items():
        path = (
            folder / "chat_template.jinja"
            if name == "default"
            else folder / "additional_chat_templates" / f"{name}.jinja"
        )
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8")


def prove_tokenizer(source: Source, folder: Path, spec: TokenizerSpec) -> None:
    """Write the golden vectors of a tokenizer folder, and which readers give them.

    Raises:
        UnsupportedError: the folder, read without transformers, does not give what transformers gives.
    """
    with quiet_transformers():
        cases = tokenizer_cases(source.tokenizer, source.slow_tokenizer)
    bare = _bare_ids(source, [case.text for case in cases])
    for case in cases:
        _check_case(source, folder, spec, case)
    write_tokenizer_golden(folder / GOLDEN_TOKENS_NAME, cases)
    table = {"vectors": GOLDEN_TOKENS_NAME, "readers": compatibility(folder, cases, bare)}
    (folder / COMPATIBILITY_NAME).write_text(canonical_json(table), encoding="utf-8")


def _bare_ids(source: Source, texts: Sequence[str]) -> dict[str, list[int]]:
    """Text -> its ids without special tokens around."""
    with quiet_transformers():
        return {text: source.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts}


def _check_case(source: Source, folder: Path, spec: TokenizerSpec, case: TokenizerCase) -> None:
    """Hold the runtime's own tokenizer to a golden vector."""
    truncation = case.truncation or {}
    sides = dataclasses.replace(
        spec,
        inputs=("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask"),
        input_pad={**spec.input_pad, "token_type_ids": source.tokenizer.pad_token_type_id, "special_tokens_mask": 1},
        truncation_side=truncation.get("side", spec.truncation_side),
        padding_side=(case.padding or {}).get("side", spec.padding_side),
    )
    reader = _reader(folder, sides)
    found = reader(
        case.text,
        case.text_pair,
        truncation=truncation.get("strategy"),
        max_length=truncation.get("max_length"),
        add_special_tokens=case.add_special_tokens,
        length=case.padding["length"] if case.padding else None,
    )
    decoded = (reader.decode(case.ids), reader.decode(case.ids, skip_special_tokens=True))
    for what, ours, expected in (
        ("the ids", found.inputs["input_ids"][0].tolist(), case.ids),
        ("the mask", found.inputs["attention_mask"][0].tolist(), case.attention_mask),
        ("the type ids", found.inputs["token_type_ids"][0].tolist(), case.type_ids),
        ("the special tokens", found.inputs["special_tokens_mask"][0].tolist(), case.special_tokens_mask),
        ("the offsets", found.offsets[0].tolist(), case.offsets),
        ("the text", decoded, (case.decoded, case.decoded_without_special)),
    ):
        if ours != expected:
            raise UnsupportedError(
                f"The tokenizer of {source.id} cannot be carried: {type(source.tokenizer).__name__} does in Python "
                f"what its tokenizer.json does not. For {case.text[:40]!r} ({case.name}) transformers gives {what} "
                f"{expected[:12]}, the file {ours[:12]}. "
                "Remedy: save the tokenizer again with transformers, or convert it to a fast tokenizer."
            )


@functools.lru_cache(maxsize=1)
def _backend(path: Path, changed: int) -> Backend:
    return Backend.from_file(str(path))


def _reader(folder: Path, spec: TokenizerSpec) -> Tokenizer:
    path = folder / "tokenizer.json"
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return Tokenizer(
        _backend(path, path.stat().st_mtime_ns), spec, clean_up=bool(config["clean_up_tokenization_spaces"])
    )


def check_tokenizer(source: Source, folder: Path, texts: tuple[str, ...]) -> None:
    """Refuse a tokenizer whose `tokenizer.json` alone does not give what transformers gives.

    Raises:
        UnsupportedError: names the first text that differs and both sets of ids.
    """
    path = folder / "tokenizer.json"
    backend = _backend(path, path.stat().st_mtime_ns)
    for text in texts:
        with quiet_transformers():
            expected = source.tokenizer(text)["input_ids"]
        actual = backend.encode(text).ids
        if actual != expected:
            raise UnsupportedError(
                f"The tokenizer of {source.id} cannot be carried: {type(source.tokenizer).__name__} does in Python "
                f"what its tokenizer.json does not. For {text[:40]!r} transformers gives {expected[:12]}, the file "
                f"{actual[:12]}. "
                "Remedy: save the tokenizer again with transformers, or convert it to a fast tokenizer."
            )
