"""Comparison of the plain reader with golden vectors."""

from __future__ import annotations

import json
from typing import Any

from palmtop.export.tokenization.golden import tokenizer_cases
from palmtop.export.tokenization.spec import specification
from palmtop.runtime.tokenizer_golden import TokenizerCase, utf16_offsets

from .spec_reader import SpecTokenizer


def read_case(reader: SpecTokenizer, case: TokenizerCase) -> dict:
    """What the reader makes of a golden vector, as the fields of that vector."""
    found = reader.encode(
        case.text,
        case.text_pair,
        special=case.add_special_tokens,
        truncation=case.truncation,
        padding=case.padding,
    )
    offsets = [list(pair) for pair in found["offsets"]]
    sequences = found.pop("sequences")
    return {
        **found,
        "offsets": offsets,
        "offsets_utf16": utf16_offsets(case.text, case.text_pair, offsets, sequences),
        "decoded": reader.decode(case.ids),
        "decoded_without_special": reader.decode(case.ids, True),
    }


def differences(reader: SpecTokenizer, cases: list[TokenizerCase]) -> list[str]:
    """The vectors that the reader does not give, each with the first field that differs."""
    out = []
    for case in cases:
        for name, value in read_case(reader, case).items():
            if value != getattr(case, name):
                out.append(f"{case.name}, {name}: {value} is not {getattr(case, name)}")
                break
    return out


def misread(fast: Any, slow: Any) -> tuple[list[TokenizerCase], list[str]]:
    """The golden vectors of a rebuilt tokenizer, and those that the reader does not give from its specification."""
    cases = tokenizer_cases(fast, slow)
    spec = specification(
        json.loads(fast.backend_tokenizer.to_str()),
        inputs=("input_ids",),
        max_length=64,
        sides=("right", "right"),
        pad={"id": fast.pad_token_id, "type_id": 0, "multiple_of": None},
        cleanup=bool(fast.clean_up_tokenization_spaces),
    )
    readers = {
        side: SpecTokenizer({**spec, "padding": {**spec["padding"], "side": side}}) for side in ("left", "right")
    }
    wrong = [
        line
        for case in cases
        for line in differences(readers[case.padding["side"] if case.padding else "right"], [case])
    ]
    return cases, wrong
