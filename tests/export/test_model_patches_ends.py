"""Classifiers by the state at the last end token take any text when traced, and give what they give untraced."""

import pytest
import torch
import transformers
from palmtop.export import hf, model_patches_ends
from palmtop.export.capture import Method, capture
from palmtop.runtime.manifest import Dim, TensorSpec
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from transformers.exporters import utils

END = 2
SIZES = {
    "bart": dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_model"), 16)
    | dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    | dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
}
# Rows that end at different places, and one that goes on behind a first end.
TEXT = torch.tensor([[5, 9, 7, 8, 6, END, 1, 1], [5, 8, END, 1, 1, 1, 1, 1], [3, 4, 5, 6, 7, 8, 9, END]])
TWICE = torch.tensor([[5, END, 7, END, 1], [5, 8, END, 9, END]])


def classifier(kind):
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=50, max_position_embeddings=40, eos_token_id=END, pad_token_id=1, **SIZES[kind]
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    return model


def captured(model):
    axes = (Dim(symbol="batch", min=1), Dim(symbol="sequence", min=1, max=32))
    specs = [TensorSpec(name, "int64", axes) for name in ("input_ids", "attention_mask")]
    example = {"input_ids": TEXT, "attention_mask": (TEXT != 1).long()}
    method = Method(model, lambda module, inputs: module(**inputs).logits)
    return capture(method, example, specs, ["logits"], trace=hf.trace)


@pytest.mark.parametrize("kind", SIZES)
def test_the_last_end_is_looked_up_in_every_row(kind):
    model = classifier(kind)
    program = captured(model).program.module()
    for ids in (TEXT, TEXT[1:2, :3], TWICE):
        feeds = {"input_ids": ids, "attention_mask": (ids != 1).long()}
        torch.testing.assert_close(program(**feeds)[0], model(**feeds).logits, rtol=1e-4, atol=1e-5)


def sized_by_values(captured):
    """Names of what is as large as values say."""
    values = [(node.name, node.meta.get("val")) for node in captured.program.graph.nodes]
    tensors = [(name, value) for name, value in values if isinstance(value, torch.Tensor)]
    return [name for name, value in tensors if free_unbacked_symbols(value.shape)]


def test_no_size_depends_on_values_unless_unpatched(monkeypatch):
    assert not sized_by_values(captured(classifier("bart")))

    kept = [entry for entry in utils._PATCHES["dynamo"] if entry[2] is not model_patches_ends.state_of_the_last_end]
    assert len(kept) == len(utils._PATCHES["dynamo"]) - 8
    monkeypatch.setitem(utils._PATCHES, "dynamo", kept)
    assert sized_by_values(captured(classifier("bart")))
