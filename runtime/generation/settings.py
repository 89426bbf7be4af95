"""How text is generated: the fields of Transformers' generation config that palmtop carries out, checked.

Defaults come from the manifest's `generation` (what the checkpoint's `generation_config.json` says), then what a call
asks for. A call may name nothing that is not known here: an option that is silently dropped is worse than an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import RequestError

# How many tokens are made when neither the checkpoint nor the call says.
DEFAULT_NEW_TOKENS = 256


@dataclass(frozen=True)
class Settings:
    """Names, meanings and defaults as in `transformers.GenerationConfig`. `seed` starts the sampling's random numbers.

    `max_length` and `min_length` count all tokens of the decoder (those of the prompt, or the start token of an
    encoder-decoder, included); `max_new_tokens` and `min_new_tokens` those made, and come first.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int = 0
    do_sample: bool = False
    seed: int | None = None
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    decoder_start_token_id: int | None = None
    stop_strings: tuple[str, ...] = ()

    @classmethod
    def of(cls, *defaults: Mapping[str, Any], **asked: Any) -> Settings:
        """Settings from the checkpoint's defaults, later ones first, and what a call asks for.

        None anywhere means "not said". A temperature of 0 means greedy, as it does for people. A checkpoint's default
        that makes no sense (an end token of -1) is as good as none.

        Raises:
            RequestError: an option that does not exist, or a value that makes no sense.
        """
        unknown = [name for name in asked if name not in _FIELDS]
        if unknown:
            raise RequestError(f"Unknown generation option {', '.join(unknown)}. Known: {', '.join(sorted(_FIELDS))}.")
        asked = {name: value for name, value in asked.items() if value is not None}
        merged: dict[str, Any] = {}
        for layer in defaults:
            merged.update({name: value for name, value in layer.items() if name in _FIELDS and value is not None})
        if "max_length" in asked:
            merged.pop("max_new_tokens", None)
        if "min_length" in asked:
            merged.pop("min_new_tokens", None)
        merged.update(asked)
        if merged.get("temperature") == 0:
            merged.update(do_sample=False, temperature=1.0)
        checked = {}
        for name, value in merged.items():
            try:
                checked[name] = _CHECKS[name](name, value)
            except RequestError:
                if name in asked:
                    raise
        return cls(**checked)

    @property
    def first_token(self) -> int:
        """What a decoder begins with that has no prompt. Raises RequestError when the checkpoint does not say."""
        first = self.bos_token_id if self.decoder_start_token_id is None else self.decoder_start_token_id
        if first is None:
            raise RequestError("There is nothing to go on from: an empty prompt, and a model without a first token.")
        return first

    def longest(self, prompt_length: int, context: int | None) -> int:
        """How many tokens the decoder may hold at the end, those of the prompt included."""
        if self.max_new_tokens is not None or self.max_length is None:
            longest = prompt_length + (DEFAULT_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens)
        else:
            longest = self.max_length
        return longest if context is None else min(longest, context)


def _whole(least: int) -> Any:
    def check(name: str, value: Any) -> int:
        if isinstance(value, (bool, np.bool_)) or int(value) != value or value < least:
            raise RequestError(f"{name} must be a whole number of at least {least}, not {value!r}.")
        return int(value)

    return _plainly(check)


def _number(low: float, high: float = float("inf"), open_low: bool = False) -> Any:
    def check(name: str, value: Any) -> float:
        number = float(value)
        if isinstance(value, (bool, str)) or not (low < number if open_low else low <= number) or not number <= high:
            bounds = f"{'more than' if open_low else 'at least'} {low:g}"
            raise RequestError(f"{name} must be {bounds}{'' if high == float('inf') else f' and at most {high:g}'}.")
        return number

    return _plainly(check)


def _plainly(check: Any) -> Any:
    """Values of another kind altogether are refused in the same words."""

    def checked(name: str, value: Any) -> Any:
        try:
            return check(name, value)
        except (TypeError, ValueError, OverflowError) as error:
            raise RequestError(f"{name} cannot be {value!r}.") from error

    return checked


def _yes_or_no(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise RequestError(f"{name} must be true or false, not {value!r}.")
    return bool(value)


def _ids(name: str, value: Any) -> tuple[int, ...]:
    return tuple(_id(name, entry) for entry in ([value] if isinstance(value, (int, np.integer)) else value))


def _words(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    words = tuple(_ids(name, entry) for entry in value)
    if not all(words):
        raise RequestError(f"{name} has an empty sequence.")
    return words


def _biases(name: str, value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    pairs: Iterable[Any] = value.items() if isinstance(value, Mapping) else value
    return tuple((_ids(name, sequence), float(bias)) for sequence, bias in pairs)


def _strings(name: str, value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(entry, str) and entry for entry in strings):
        raise RequestError(f"{name} must be texts that are not empty.")
    return strings


def _decay(name: str, value: Any) -> tuple[int, float]:
    start, factor = value
    return int(start), float(factor)


def _early(name: str, value: Any) -> bool | str:
    return value if value == "never" else _yes_or_no(name, value)


def _penalty(name: str, value: Any) -> float:
    return _number(0, open_low=True)(name, value)


def _any_number(name: str, value: Any) -> float:
    return float(value)


_id = _whole(0)
_CHECKS: dict[str, Any] = {
    "max_new_tokens": _whole(0),
    "max_length": _whole(1),
    "min_new_tokens": _whole(0),
    "min_length": _whole(0),
    "do_sample": _yes_or_no,
    "seed": _whole(0),
    "temperature": _number(0, open_low=True),
    "top_k": _whole(0),
    "top_p": _number(0, 1),
    "min_p": _number(0, 1),
    "typical_p": _number(0, 1, open_low=True),
    "epsilon_cutoff": _number(0, 1),
    "repetition_penalty": _penalty,
    "encoder_repetition_penalty": _penalty,
    "no_repeat_ngram_size": _whole(0),
    "encoder_no_repeat_ngram_size": _whole(0),
    "bad_words_ids": _plainly(_words),
    "sequence_bias": _plainly(_biases),
    "suppress_tokens": _plainly(_ids),
    "begin_suppress_tokens": _plainly(_ids),
    "forced_bos_token_id": _id,
    "forced_eos_token_id": _plainly(_ids),
    "exponential_decay_length_penalty": _plainly(_decay),
    "remove_invalid_values": _yes_or_no,
    "renormalize_logits": _yes_or_no,
    "num_beams": _whole(1),
    "num_return_sequences": _whole(1),
    "length_penalty": _plainly(_any_number),
    "early_stopping": _early,
    "bos_token_id": _id,
    "eos_token_id": _plainly(_ids),
    "pad_token_id": _id,
    "decoder_start_token_id": _id,
    "stop_strings": _plainly(_strings),
}
_FIELDS = frozenset(field.name for field in dataclasses.fields(Settings))
