"""FlauBERT with its own Python tokenizer goes to all three formats; the bundle needs no Python code and no Moses."""

from __future__ import annotations

import sys

import pytest
import torch
import transformers
from palmtop.export import export_checkpoint
from palmtop.runtime import load

from ..support.moses import flaubert, texts, xlm
from ..support.tiny import randomize, tiny_config

GREETING = "Bonjour, comment vas-tu?"


def checkpoint(folder, model_type: str, tokenizer):
    config = tiny_config(model_type, len(tokenizer), pad_index=2, pad_token_id=2, bos_index=0, eos_index=1, unk_index=3)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    randomize(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("model_type", "maker", "targets"),
    [("flaubert", flaubert, ("onnx", "coreml", "executorch")), ("xlm", xlm, ("onnx",))],
)
def test_a_moses_checkpoint_is_the_same_model_in_every_format(tmp_path, monkeypatch, model_type, maker, targets):
    slow = maker(tmp_path / "vocabulary")
    folder = checkpoint(tmp_path / model_type, model_type, slow)
    result = export_checkpoint(folder, tmp_path / "a.bundle", task="text-classification", to=targets)
    assert {entry.target: entry.status for entry in result.report.artifacts} == dict.fromkeys(targets, "passed")
    assert not (folder / "tokenizer.json").exists()
    for module in ("sacremoses", "transformers"):  # what the phone does not have
        monkeypatch.setitem(sys.modules, module, None)
    pipeline = load(tmp_path / "a.bundle")
    for text in (GREETING, *texts(60)):
        assert pipeline.tokenizer(text).inputs["input_ids"][0].tolist() == slow(text, truncation=True)["input_ids"]
    assert (tmp_path / "a.bundle" / "tokenizer" / "merges.txt").is_file()
