"""Encoders of many families, each for one task, go the same way to all three formats and still are the model."""

from __future__ import annotations

import pytest
from palmtop.export import export_checkpoint

from ..support.tiny import tiny_checkpoint

FAMILIES = [
    ("bert", "question-answering"),
    ("roberta", "fill-mask"),
    ("distilbert", "token-classification"),
    ("albert", "multiple-choice"),
    ("electra", "text-classification"),
    ("xlm-roberta", "token-classification"),
    ("mpnet", "sentence-similarity"),
    ("modernbert", "fill-mask"),
    ("deberta-v2", "question-answering"),
    ("mobilebert", "text-classification"),
    ("convbert", "text-classification"),
]


@pytest.mark.parametrize(("model_type", "task"), FAMILIES)
def test_an_encoder_is_the_same_model_in_every_format(model_type, task, tmp_path):
    source = tiny_checkpoint(tmp_path / model_type, model_type, task)
    result = export_checkpoint(source, tmp_path / "encoder.bundle", task=task)
    assert {entry.target: entry.status for entry in result.report.artifacts} == {
        "onnx": "passed",
        "coreml": "passed",
        "executorch": "passed",
    }
    assert all(entry.cases >= 4 for entry in result.report.artifacts)
