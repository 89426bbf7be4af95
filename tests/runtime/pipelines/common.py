"""What the pipeline tests have in common: which tokenizers and texts they use, and how results are compared."""

from __future__ import annotations

import pytest
import transformers

# One of each kind of tokenizer: WordPiece, byte-level BPE, Unigram, and DeBERTa's Unigram (token types, other ids).
KINDS = ("bert", "roberta", "xlm-roberta", "deberta-v2")

TEXTS = (
    "Réveille-moi à sept heures, s'il te plaît.",
    "Wolfgang lives in Berlin and works for Hugging Face in New York City.",
    "내일 아침 일곱 시에 깨워 주세요.",
    "今天天气怎么样",
    "🙂 smile 👩‍👩‍👧\u200b and tab\tand newline\n done",
    "a",
    "",
    "   ",
)
LONG_TEXT = " ".join(["Wolfgang lives in Berlin; the quick brown fox jumps over New York City."] * 12)


def reference(task: str, folder, **options):
    """The pipeline of Transformers for a checkpoint, on the CPU in fp32."""
    return transformers.pipeline(
        task, model=str(folder), tokenizer=str(folder), device="cpu", dtype="float32", **options
    )


def assert_same(actual, expected, tolerance: float = 1e-5) -> None:
    """Nested results are equal: same fields and values, scores within fp32 noise."""
    if isinstance(expected, (list, tuple)):
        assert isinstance(actual, list)
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other, tolerance)
        return
    plain = actual.to_dict()
    assert set(plain) == set(expected)
    for name, value in expected.items():
        if name == "score":
            assert isinstance(plain[name], float)
            assert plain[name] == pytest.approx(float(value), abs=tolerance)
        else:
            assert plain[name] == value
