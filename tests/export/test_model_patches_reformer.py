"""Reformer's positions are looked up when traced: no size comes out of a tensor, and the model is what it was."""

import pytest
import torch
import transformers
from palmtop.export import hf, model_patches_reformer
from palmtop.export.capture import Method, capture
from palmtop.runtime.manifest import Dim, TensorSpec
from transformers.exporters import utils


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.ReformerConfig(
        vocab_size=50, attn_layers=["local"], hidden_size=16, feed_forward_size=16, num_attention_heads=2,
        attention_head_size=8, local_attn_chunk_length=64, axial_pos_shape=[4, 8], axial_pos_embds_dim=[6, 10],
        max_position_embeddings=32, is_decoder=False, pad_token_id=0,
    )  # fmt: skip
    model = transformers.ReformerModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    return model


def captured(model):
    axes = (Dim(size=1), Dim(symbol="sequence", min=4, max=32))
    specs = [TensorSpec(name, "int64", axes) for name in ("input_ids", "attention_mask")]
    example = {"input_ids": torch.arange(5, 17)[None], "attention_mask": torch.ones(1, 12, dtype=torch.long)}
    method = Method(model, lambda module, inputs: module(**inputs).last_hidden_state)
    return capture(method, example, specs, ["y"], trace=hf.trace)


def reads_sizes(program):
    return any(node.target is torch.ops.aten.item.default for node in program.graph.nodes)


def test_positions_are_looked_up(model):
    program = captured(model).program
    assert not reads_sizes(program)
    for length in (4, 11, 32):
        ids = torch.randint(5, 50, (1, length))
        feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        wanted = model(**feeds).last_hidden_state
        torch.testing.assert_close(program.module()(**feeds)[0], wanted, rtol=1e-4, atol=1e-5)


def test_unpatched_a_size_comes_out_of_a_tensor(model, monkeypatch):
    ours = {value for value in vars(model_patches_reformer).values() if callable(value)}
    kept = [entry for entry in utils._PATCHES["dynamo"] if entry[2] not in ours]
    assert len(kept) < len(utils._PATCHES["dynamo"])
    monkeypatch.setitem(utils._PATCHES, "dynamo", kept)
    assert reads_sizes(captured(model).program)
