"""Encoders that give another number of positions than they read, and decoders of another kind than their encoder."""

from __future__ import annotations

import pytest
import torch
from palmtop.export.generation.encoder_decoder import EncoderDecoder
from palmtop.runtime.manifest import Dim, TensorSpec
from transformers import AutoConfig, AutoModelForSpeechSeq2Seq, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

BATCH = Dim(symbol="batch", min=1)
SHORT, LONG = 2000, 16000  # samples


def speech() -> EncoderDecoder:
    """Moonshine: convolutions of several strides, without padding."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        "moonshine",
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
    )
    model = AutoModelForSpeechSeq2Seq.from_config(config).requires_grad_(False).eval()
    spec = TensorSpec("input_values", "float32", (BATCH, Dim(symbol="samples", min=SHORT, max=LONG)))
    return EncoderDecoder(model, (spec,), {"input_values": torch.randn(2, 4 * SHORT)}, start=1)


def test_the_decoder_reads_as_much_as_the_encoder_gives_for_the_longest_input():
    both = speech()
    (axis,) = {spec.dims[2] for spec in both.growing(16).inputs if spec.name.startswith("cross_")}

    encoder = both.model.get_encoder()
    assert axis.largest == encoder(torch.zeros(1, LONG)).last_hidden_state.shape[1]
    assert axis.largest != both.encoded * LONG // (4 * SHORT), "lengths are in no proportion"


@pytest.mark.parametrize("way", ["growing", "fixed"])
def test_a_decoder_behind_an_encoder_of_another_kind_is_told_its_positions(way):
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = AutoConfig.for_model("vit", image_size=16, patch_size=8, **sizes)
    decoder = AutoConfig.for_model("bert", vocab_size=61, is_decoder=True, add_cross_attention=True, **sizes)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = VisionEncoderDecoderModel(config).requires_grad_(False).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(0, 0.3)
    spec = TensorSpec("pixel_values", "float32", (BATCH, Dim(size=3), Dim(size=16), Dim(size=16)))
    both = EncoderDecoder(model, (spec,), {"pixel_values": torch.randn(2, 3, 16, 16)}, start=1)

    part = both.growing(16) if way == "growing" else both.fixed(16)

    # Whatever is found is what gives the model's own logits in steps; all that is left is that something was.
    assert {"cross_key_0", "cross_value_0"} <= {spec.name for spec in part.inputs}
