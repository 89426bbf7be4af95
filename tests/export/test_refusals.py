"""Folders that look like checkpoints and are none, and configs that say what only another machine could do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from palmtop.export.source import open_source
from palmtop.runtime.errors import DamagedError, RequestError, UnsupportedError
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

from .conftest import edit_json


def say(folder: Path, **fields: object) -> None:
    """Put fields into a checkpoint's config."""
    edit_json(folder / "config.json", lambda config: config.update(fields))


def test_an_adapter_is_named_with_the_model_that_it_belongs_to(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "bert-base", "r": 8}))
    save_file({"lora_A": torch.zeros(2, 2)}, tmp_path / "adapter_model.safetensors")

    with pytest.raises(RequestError, match="is an adapter of bert-base, not a model") as caught:
        open_source(tmp_path)

    assert "merge_and_unload" in str(caught.value)


def test_an_adapter_beside_a_model_is_not_passed_over_in_silence(copy):
    folder = copy()
    save_file({"lora_A": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")

    with pytest.raises(RequestError, match="is an adapter, not a model"):
        open_source(folder)


def packed(folder, dtype: torch.dtype) -> None:
    """Store the matrices in a dtype, as quantizers do."""
    weights = load_file(folder / "model.safetensors")
    stored = {name: value.to(dtype) if value.dim() == 2 else value for name, value in weights.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_weights_that_another_quantizer_packed_are_refused_by_its_name(copy, dtype):
    folder = copy()
    packed(folder, dtype)
    say(folder, quantization_config={"quant_method": "gptq", "bits": 4})

    with pytest.raises(UnsupportedError, match=r"quantized already \(gptq\)") as caught:
        open_source(folder)

    assert "Remedy: export the checkpoint that it was made from" in str(caught.value)


def test_a_remark_about_quantization_that_is_no_longer_true_is_dropped(copy):
    folder = copy()
    say(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})

    assert open_source(folder).load_model().config.num_labels == 3


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation"])
def test_attention_kernels_of_a_gpu_are_not_asked_for(copy, field):
    folder = copy()
    say(folder, **{field: "flash_attention_2"})

    assert open_source(folder).load_model().config._attn_implementation == "sdpa"


def test_attention_that_any_machine_computes_is_left_as_it_is(copy):
    folder = copy()
    say(folder, attn_implementation="eager")

    assert open_source(folder).load_model().config._attn_implementation == "eager"


@pytest.mark.parametrize("said", [3, "BertModel", [1]])
def test_architectures_that_are_no_names_are_damage(copy, said):
    folder = copy()
    say(folder, architectures=said)

    with pytest.raises(DamagedError, match="architectures are no list of names"):
        open_source(folder)


def test_a_tokenizer_that_wants_more_than_text_is_refused(copy, monkeypatch):
    def wants_boxes(self: PreTrainedTokenizerBase, *_: object, **__: object) -> None:
        raise ValueError("You must provide corresponding bounding boxes")

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", wants_boxes)

    with pytest.raises(UnsupportedError, match="takes more than plain text: ValueError: You must provide") as caught:
        open_source(copy())

    assert "Remedy: export the module" in str(caught.value)


def test_a_model_that_needs_another_package_says_which(copy, monkeypatch):
    def needs_natten(self: BertForSequenceClassification, *_: object, **__: object) -> None:
        raise ImportError("DinatModel requires the natten library")

    folder = copy()
    monkeypatch.setattr(BertForSequenceClassification, "__init__", needs_natten)

    with pytest.raises(RequestError, match="needs a package that is not here: ImportError: DinatModel requires"):
        open_source(folder).load_model()
