"""Tokenizers whose tokens are the bytes of a text in UTF-8, behind some special ones (Perceiver, ByT5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from .steps import add_tokens, template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def bytes_backend(slow: PreTrainedTokenizerBase) -> Tokenizer:
    """The pipeline of a slow tokenizer that gives a byte the id behind that of the byte before it.

    Bytes that are no UTF-8 decode to U+FFFD, also where the slow one drops them (ByT5).
    """
    written = {byte: _written(byte) for byte in range(256)}
    vocabulary = {character: slow.convert_tokens_to_ids(chr(byte)) for byte, character in written.items()}
    first = min(vocabulary.values())
    vocabulary |= {str(token): i for i, token in slow.added_tokens_decoder.items() if i < first}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    add_tokens(backend, slow)
    backend.post_processor = template(slow)
    return backend


def _written(byte: int) -> str:
    """The character that stands for a byte in byte-level vocabularies (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return chr(byte) if byte in shown else chr(0x100 + [b for b in range(256) if b not in shown].index(byte))
