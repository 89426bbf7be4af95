"""A working tokenizer of the class that a model type uses, as far as it can be made without its published files."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

from tests.support import moses
from tests.support.vocab import _DEFAULT_CLASS, _kind, build_tokenizer
from tests.support.vocabularies import metaspace, sentencepiece_model, tiktoken

# Names in TOKENIZER_MAPPING that say no more than "a tokenizer.json".
_GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast", None)


def make_tokenizer(
    model_type: str, folder: Path, max_length: int, generative: bool, letters: bool = False
) -> PreTrainedTokenizerBase:
    """A tokenizer for a model type; `folder` holds files that some classes are made from; `letters`: one for CTC.

    Types without a class of their own get what most such checkpoints have: byte-level BPE with a start token for
    generative models, the special tokens of BERT for others.
    """
    name = TOKENIZER_MAPPING_NAMES.get(model_type)
    cls = tokenizer_class_from_name(name) if name not in _GENERIC else None
    if letters and (cls is None or "CTC" not in cls.__name__):
        cls = tokenizer_class_from_name("Wav2Vec2CTCTokenizer")
    if cls is None and model_type.startswith("modernbert"):
        return build_tokenizer(model_type, None, max_length)
    if cls is None:
        return _bytes_with_start(max_length) if generative else build_tokenizer("bert", None, max_length)
    if _kind(cls) is not None and (cls.__name__ in _DEFAULT_CLASS.values() or _mapped(model_type, cls)):
        with contextlib.suppress(Exception):  # classes that want pieces that the corpus does not teach
            return build_tokenizer(model_type, None, max_length)
    for make in (_from_pieces, _from_nothing, _from_moses, _from_sentencepiece, _from_pairs, _from_words):
        tokenizer = make(cls, folder, max_length)
        if tokenizer is not None:
            return tokenizer
    return _bytes_with_start(max_length)


def _mapped(model_type: str, cls: type) -> bool:
    return TOKENIZER_MAPPING_NAMES.get(model_type) == cls.__name__


def _attempt(cls: type, *arguments: Any, **options: Any) -> PreTrainedTokenizerBase | None:
    try:
        tokenizer = cls(*arguments, **options)
        ids = tokenizer("a quick test")["input_ids"]
    except Exception:  # whatever the class wants, these are not its files
        return None
    unknown = tokenizer.unk_token_id
    return tokenizer if len(ids) >= 3 and set(ids) != {unknown} else None


def _from_pieces(cls: type, folder: Path, max_length: int) -> PreTrainedTokenizerBase | None:
    """Classes that take pieces as SentencePiece writes them, whose special tokens they name themselves."""
    if "vocab" not in inspect.signature(cls.__init__).parameters:
        return None
    try:
        empty = cls()
    except Exception:
        return None
    named = [str(token) for token in empty.all_special_tokens]
    spaced = metaspace().model
    state = json.loads(Tokenizer(spaced).to_str())["model"]
    takes_bytes = getattr(empty.backend_tokenizer.model, "byte_fallback", True)
    pieces = [piece for piece in state["vocab"] if takes_bytes or not re.fullmatch("<0x..>", piece)]
    tokens = list(dict.fromkeys([*named, "<unk>", *pieces, "▁"]))
    scored = [(token, 0.0 if index < len(named) else -1.0 - index / 100) for index, token in enumerate(tokens)]
    for arguments in (
        {"vocab": {token: index for index, token in enumerate(tokens)}, "merges": [tuple(m) for m in state["merges"]]},
        {"vocab": scored},
    ):
        tokenizer = _attempt(cls, **arguments, model_max_length=max_length)
        if tokenizer is not None:
            return tokenizer
    return None


def _from_nothing(cls: type, folder: Path, max_length: int) -> PreTrainedTokenizerBase | None:
    """Classes whose vocabulary is the bytes."""
    return _attempt(cls, model_max_length=max_length)


def _from_moses(cls: type, folder: Path, max_length: int) -> PreTrainedTokenizerBase | None:
    if cls.__name__ not in ("XLMTokenizer", "FlaubertTokenizer"):
        return None
    vocabulary, merges = moses.moses_vocabulary(folder / "files")
    return _attempt(cls, str(vocabulary), str(merges), model_max_length=max_length)


def _from_sentencepiece(cls: type, folder: Path, max_length: int) -> PreTrainedTokenizerBase | None:
    """Classes that read a SentencePiece model, with a vocabulary beside it or not."""
    names = getattr(cls, "vocab_files_names", {})
    wanted = [name for name, file in names.items() if str(file).endswith((".model", ".spm"))]
    if not wanted:
        return None
    place = folder / "files"
    place.mkdir(exist_ok=True)
    model = place / "pieces.model"
    model.write_bytes(sentencepiece_model())
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    tokens = [pieces.id_to_piece(index) for index in range(pieces.get_piece_size())]
    vocabulary = place / "vocab.json"
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    ordered = [*specials, *(token for token in tokens if token not in specials)]
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(ordered)}), encoding="utf-8")
    files = {name: str(model) for name in wanted}
    files |= {name: str(vocabulary) for name, file in names.items() if str(file) == "vocab.json" and name not in wanted}
    if "vocab_file" in names and "vocab" in names and "spm_file" not in names:
        files["vocab"] = str(vocabulary)
    for options in ({"vocab_file": str(vocabulary)}, {"vocab": str(vocabulary)}, {}):
        tokenizer = _attempt(cls, **{**files, **options}, model_max_length=max_length)
        if tokenizer is not None:
            return tokenizer
    return None


def _from_pairs(cls: type, folder: Path, max_length: int) -> PreTrainedTokenizerBase | None:
    """Classes that read a vocabulary and merges whose pieces end in `@@` or `</w>`."""
    names = getattr(cls, "vocab_files_names", {})
    if set(names) != {"vocab_file", "merges_file"}:
        return None
    place = folder / "files"
    place.mkdir(exist_ok=True)
    vocabulary, merges = moses.moses_vocabulary(place, lower=True)
    known = json.loads(vocabulary.read_text(encoding="utf-8"))
    # Pieces as subword-nmt writes them: inside a word with "@@", at its end bare.
    specials = ["__null__", "__start__", "__end__", "__unk__"]
    written = [piece[:-4] if piece.endswith("</w>") else f"{piece}@@" for piece in known if piece not in moses.SPECIALS]
    for tokens in (known, [*specials, *dict.fromkeys(written)]):
        vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8")
        for header in ("", "#version: 0.2\n"):
            text = merges.read_text(encoding="utf-8").removeprefix("#version: 0.2\n")
            merges.write_text(header + text, encoding="utf-8")
            tokenizer = _attempt(cls, str(vocabulary), str(merges), model_max_length=max_length)
            if tokenizer is not None and (header or "@@" not in str(tokens)):
                return tokenizer
    return None


def _from_words(cls: type, folder: Path, max_length: int) -> PreTrainedTokenizerBase | None:
    """Classes that read letters (speech recognition by CTC)."""
    if set(getattr(cls, "vocab_files_names", {})) - {"vocab_file", "tokenizer_config_file"}:
        return None
    place = folder / "files"
    place.mkdir(exist_ok=True)
    letters = place / "vocab.json"
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
    letters.write_text(json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8")
    try:
        tokenizer = cls(str(letters), model_max_length=max_length)
        ids = tokenizer("A TEST")["input_ids"]
    except Exception:
        return None
    return None if None in ids else tokenizer  # a class that reads other files, and knows no token of these


def _bytes_with_start(max_length: int) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=tiktoken(),
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=max_length,
    )
