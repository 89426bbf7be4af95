"""Python tokenizers of Transformers as `tokenizers` pipelines with the same ids, by the class of the tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from ...runtime.errors import UnsupportedError
from .moses import LANGUAGES, moses_backend
from .pieces import marian_backend, own_pieces, siglip_backend, vocabulary_backend
from .raw_bytes import bytes_backend
from .words import blenderbot_small_backend, words_backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REBUILDERS: dict[str, Callable[[PreTrainedTokenizerBase], Tokenizer]] = {
    **dict.fromkeys(LANGUAGES, moses_backend),
    "BlenderbotSmallTokenizer": blenderbot_small_backend,
    "ByT5Tokenizer": bytes_backend,
    "CTRLTokenizer": words_backend,
    "M2M100Tokenizer": vocabulary_backend,
    "MarianTokenizer": marian_backend,
    "PerceiverTokenizer": bytes_backend,
    "PhobertTokenizer": words_backend,
    "SiglipTokenizer": siglip_backend,
    "Speech2TextTokenizer": vocabulary_backend,
}


def rebuilt(slow: PreTrainedTokenizerBase, name: str = "The checkpoint") -> Any:
    """The slow tokenizer as a fast one of transformers, with the same special tokens and settings.

    Raises:
        UnsupportedError: nothing rebuilds its class, or its vocabulary holds what no pipeline can.
    """
    from transformers import PreTrainedTokenizerFast

    make = REBUILDERS.get(type(slow).__name__)
    if make is None:
        raise UnsupportedError(
            f"{name} uses {type(slow).__name__}, which runs Python code and has no tokenizer.json to carry to a "
            "phone. "
            "Remedy: convert it to a fast tokenizer and save that in the checkpoint."
        )
    roles = ("unk", "bos", "eos", "sep", "pad", "cls", "mask")
    named = {
        f"{role}_token": str(token) for role in roles if (token := getattr(slow, f"{role}_token", None)) is not None
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=make(slow),
        model_max_length=slow.model_max_length,
        model_input_names=list(slow.model_input_names),
        padding_side=slow.padding_side,
        truncation_side=slow.truncation_side,
        clean_up_tokenization_spaces=bool(slow.clean_up_tokenization_spaces),
        **named,
    )


def known_difference(slow: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the Python tokenizer gives ids of a text that its rebuilt form may not give.

    It looks at what it made before it puts special tokens around (a text that ends in the end token gets no second
    one), or it cuts out a piece that has no id.
    """
    if hasattr(slow, "_add_eos_if_not_present") and any(token in text for token in slow.all_special_tokens):
        return True
    if REBUILDERS.get(type(slow).__name__) not in (marian_backend, vocabulary_backend):
        return False
    lost = _lost(slow)
    return bool(lost) and not lost.isdisjoint(slow.tokenize(text))


@functools.lru_cache(maxsize=1)
def _lost(slow: PreTrainedTokenizerBase) -> frozenset[str]:
    return frozenset(own_pieces(slow).lost)
