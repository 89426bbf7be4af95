"""The tokenizer folder of a bundle: vocabularies that phones can read, and what else a reader must know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from ..runtime.errors import UnsupportedError
from ..runtime.manifest import TokenizerSpec, canonical_json
from .source import Source, quiet_transformers

FOLDER = "tokenizer"

# transformers 5 names generic tokenizers after their backend; device-side readers know these classes.
_GENERIC = {"TokenizersBackend", "PreTrainedTokenizerFast", "PythonBackend", ""}
_CLASS_BY_KIND = {
    "wordpiece": "BertTokenizer",
    "byte-level-bpe": "GPT2Tokenizer",
    "bpe": "LlamaTokenizer",
    "unigram": "XLMRobertaTokenizer",
    "wordlevel": "PreTrainedTokenizerFast",
}
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
_SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "tokenizer.model", "spm.model")


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
    concrete = _CLASS_BY_KIND[kind] if name in _GENERIC else name
    (folder / "tokenizer_config.json").write_text(
        canonical_json(_config(source, concrete, max_length, inputs)), encoding="utf-8"
    )
    _write_vocabulary(source, folder, data["model"], kind)
    special = {role: getattr(tokenizer, f"{role}_token") for role in _ROLES}
    special = {role: str(token) for role, token in special.items() if token is not None}
    pad = tokenizer.pad_token_id or 0
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


def _write_vocabulary(source: Source, folder: Path, model: dict[str, Any], kind: str) -> None:
    """The files that readers from before `tokenizer.json` ask for."""
    if kind in ("wordpiece", "wordlevel"):
        ids = source.tokenizer.get_vocab()  # with the tokens that were added to it
        tokens = sorted(ids, key=ids.__getitem__)
        counted = [ids[token] for token in tokens] == list(range(len(tokens)))  # the line number is the id
        if counted and not any(end in token for token in tokens for end in "\n\r\u0085\u2028\u2029"):
            (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    elif kind == "byte-level-bpe":
        vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
        (folder / "vocab.json").write_text(vocabulary + "\n", encoding="utf-8")
        pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in pairs), encoding="utf-8")
    for name in _SENTENCEPIECE:
        if (source.folder / name).is_file():
            (folder / name).write_bytes((source.folder / name).read_bytes())


def check_tokenizer(source: Source, folder: Path, texts: tuple[str, ...]) -> None:
    """Refuse a tokenizer whose `tokenizer.json` alone does not give what transformers gives.

    Raises:
        UnsupportedError: names the first text that differs and both sets of ids.
    """
    backend = Backend.from_file(str(folder / "tokenizer.json"))
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
