"""Tokenizers that merge letters to pieces word by word and write pieces inside words with `@@` behind them.

BlenderbotSmall, CTRL and PhoBERT. Pipelines name those bare, and give the last of a word `</w>`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

from ...runtime.errors import UnsupportedError
from .moses import merged_model
from .steps import (
    ANY,
    END,
    MARK,
    OTHER,
    START,
    Step,
    a_class,
    add_tokens,
    any_of,
    characters,
    lower,
    python_class,
    replace,
    template,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INSIDE, _LAST = "@@", "</w>"


def words_backend(slow: PreTrainedTokenizerBase) -> Tokenizer:
    """The pipeline of a slow tokenizer whose words are what stands between spaces, a line's end with the last.

    Raises:
        UnsupportedError: its merges make pieces that its vocabulary does not have.
    """
    space = _space(slow)
    return _backend(slow, [], pre_tokenizers.Split(Regex(f"[^{space}]+\\n?"), "removed", invert=True))


def blenderbot_small_backend(slow: PreTrainedTokenizerBase) -> Tokenizer:
    """The same with punctuation apart, in lower case, and a word for the end of a line.

    Raises:
        UnsupportedError: its merges make pieces that its vocabulary does not have.
    """
    space = _space(slow)
    steps = [
        *replace("string", [(MARK, OTHER)]),
        *replace("regex", [(f"(?<=[^{space}])\n", MARK)]),
        *replace("string", [(f"'{MARK}", "'")]),  # spaces are put around ', and several spaces made one
        *replace("regex", [(f"[{space}]+", " "), (f"(?<={ANY})(?=[.,!?()])", " ")]),
        *replace("string", [("'", " ' "), (MARK, " __newln__ ")]),
        *lower(),
    ]
    return _backend(slow, steps, pre_tokenizers.Split(" ", "removed"))


def _space(slow: PreTrainedTokenizerBase) -> str:
    """What a tokenizer takes for spaces, as a class without brackets: its code uses either `re` or `regex`."""
    return a_class(sys.modules[type(slow).__module__].re.findall(r"\s", characters()))


def _backend(slow: PreTrainedTokenizerBase, steps: list[Step], split: pre_tokenizers.PreTokenizer) -> Tokenizer:
    special = set(slow.all_special_tokens)
    vocabulary = {_name(token, special): token_id for token, token_id in slow.encoder.items()}
    if {MARK, OTHER} & set("".join(vocabulary)):
        raise UnsupportedError(
            f"The tokenizer's vocabulary has the private-use character U+{ord(MARK):04X} or U+{ord(OTHER):04X}, which "
            "stand for something else here. Remedy: convert it to a fast tokenizer and save that in the checkpoint."
        )
    backend = Tokenizer(merged_model(slow, vocabulary))
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = split
    space = python_class(r"\s")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(f"{_LAST}{END}"), " "),
            decoders.Replace(Regex(rf"{START}{any_of(sorted(special))}{END}\K"), " "),
            decoders.Replace(Regex(rf"[^ ]{END}\K"), MARK),
            decoders.Fuse(),
            decoders.Replace(Regex(f"{MARK}{END}"), _INSIDE),
            decoders.Replace(MARK, ""),
            decoders.Replace(Regex(f"{START}[{space}]+"), ""),
            decoders.Replace(Regex(f"[{space}]+{END}"), ""),
        ]
    )
    add_tokens(backend, slow)
    backend.post_processor = template(slow)
    return backend


def _name(token: str, special: set[str]) -> str:
    if token in special:
        return token
    return token.removesuffix(_INSIDE) if token.endswith(_INSIDE) and token != _INSIDE else f"{token}{_LAST}"
