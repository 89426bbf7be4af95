"""The vocabulary files of readers from before `tokenizer.json`, and the variant that ExecuTorch's reader takes."""

from __future__ import annotations

import base64
import copy
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .spec import normalizer_steps, post_processor

Json = dict[str, Any]

SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "tokenizer.model", "spm.model")
_LINE_ENDS = "\n\r\u0085\u2028\u2029"
# Types of pieces and of models, as sentencepiece_model.proto numbers them.
_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6
_UNIGRAM, _BPE = 1, 2


def write_vocab_txt(folder: Path, ids: dict[str, int]) -> None:
    """One token a line, where the line number can be the id."""
    tokens = sorted(ids, key=ids.__getitem__)
    counted = [ids[token] for token in tokens] == list(range(len(tokens)))
    if counted and not any(end in token for token in tokens for end in _LINE_ENDS):
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")


def write_vocab_json(folder: Path, model: Json, header: bool) -> None:
    """`vocab.json` and `merges.txt`, whose lines are pairs with a space between."""
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    if any(len(pair) != 2 or set(" " + _LINE_ENDS) & set("".join(pair)) for pair in pairs):
        return
    (folder / "vocab.json").write_text(vocabulary + "\n", encoding="utf-8")
    lines = "".join(f"{left} {right}\n" for left, right in pairs)
    (folder / "merges.txt").write_text(("#version: 0.2\n" if header else "") + lines, encoding="utf-8")


def write_executorch(folder: Path, data: Json) -> None:
    """ExecuTorch's reader knows BPE, and special tokens around text only as a template."""
    step = data.get("post_processor") or {}
    if data["model"]["type"] != "BPE" or step.get("type") not in ("RobertaProcessing", "BertProcessing"):
        return
    variant = copy.deepcopy(data)
    found = post_processor(step)
    names = {step[key][1]: step[key][0] for key in ("cls", "sep")}
    variant["post_processor"] = {
        "type": "TemplateProcessing",
        **{key: [_piece(entry, names) for entry in found[key]] for key in ("single", "pair")},
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in sorted(names.items())},
    }
    (folder / "executorch").mkdir()
    text = json.dumps(variant, ensure_ascii=False, indent=1) + "\n"
    (folder / "executorch" / "tokenizer.json").write_text(text, encoding="utf-8")


def _piece(entry: Json, names: dict[int, str]) -> Json:
    if "sequence" in entry:
        return {"Sequence": {"id": entry["sequence"], "type_id": entry["type_id"]}}
    return {"SpecialToken": {"id": names[entry["special"]], "type_id": entry["type_id"]}}


# --- SentencePiece --------------------------------------------------------------------------------------------------


def write_sentencepiece(folder: Path, data: Json, expected: dict[str, list[int]]) -> None:
    """`spiece.model`, rebuilt from a Unigram or BPE vocabulary with the same ids.

    It is written only when SentencePiece itself reads it and gives what is `expected`: text -> ids of `tokenizer.json`.
    """
    pieces = _pieces(data)
    if pieces is None:
        return
    from sentencepiece import SentencePieceProcessor

    for prefix, collapse in _whitespace(data):
        model = _model(data, pieces, prefix, collapse)
        try:
            reader = SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            return  # two unknown pieces, pieces that occur twice: nothing that SentencePiece can hold
        if all(reader.encode(text) == ids for text, ids in expected.items()):
            (folder / "spiece.model").write_bytes(model)
            return


def _pieces(data: Json) -> list[tuple[str, float, int]] | None:
    """Piece, score and type by id; None when ids have gaps or there is no unknown piece."""
    model = data["model"]
    if model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        return None
    special = {token["content"] for token in data["added_tokens"] if token["special"]}
    added = {token["content"] for token in data["added_tokens"]}
    if model["type"] == "Unigram":
        entries = [(piece, score) for piece, score in model["vocab"]]
        unknown = entries[model["unk_id"]][0] if model["unk_id"] is not None else None
    else:
        tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
        if [model["vocab"][token] for token in tokens] != list(range(len(tokens))):
            return None
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(model["merges"]):
            ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
        entries = [(token, float(-ranks.get(token, len(ranks)))) for token in tokens]
        unknown = model.get("unk_token")
    if unknown is None:
        return None

    def kind(piece: str) -> int:
        if piece == unknown:
            return _UNKNOWN
        if piece in special:
            return _CONTROL
        if piece in added:
            return _USER
        return _BYTE if model.get("byte_fallback") and _is_byte(piece) else _NORMAL

    return [(piece, score, kind(piece)) for piece, score in entries]


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _whitespace(data: Json) -> Iterator[tuple[bool, bool]]:
    """What SentencePiece may do with spaces, likeliest first: one put before the text; several made one."""
    steps = json.dumps([data.get("normalizer"), data.get("pre_tokenizer")])
    prefix = '"Prepend"' in steps or ('"Metaspace"' in steps and '"never"' not in steps)
    collapse = " {2,}" in steps
    yield prefix, collapse
    yield prefix, not collapse


def _model(data: Json, pieces: list[tuple[str, float, int]], prefix: bool, collapse: bool) -> bytes:
    """A ModelProto (sentencepiece_model.proto): pieces 1, trainer_spec 2, normalizer_spec 3."""
    out = b"".join(
        _field(1, _field(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + _field(3, kind))
        for piece, score, kind in pieces
    )
    bpe = data["model"]["type"] == "BPE"
    unk = next(i for i, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN)
    trainer = _field(3, _BPE if bpe else _UNIGRAM) + _field(4, len(pieces))
    trainer += (
        _field(35, int(bool(data["model"].get("byte_fallback"))))
        + _field(40, unk)
        + _field(45, pieces[unk][0].encode())
    )
    charsmap = next((step["charsmap"] for step in normalizer_steps(data) if step["type"] == "precompiled"), "")
    normalizer = _field(1, b"custom" if charsmap else b"identity") + _field(2, base64.b64decode(charsmap))
    normalizer += _field(3, int(prefix)) + _field(4, int(collapse)) + _field(5, 1)
    return out + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, value: int | bytes) -> bytes:
    """A field of a protobuf message: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
