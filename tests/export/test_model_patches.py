"""Each change of a model's code while it is traced is still needed, and gives what the model gives."""

import pytest
import torch
import transformers
from palmtop.export import hf, model_patches
from palmtop.export.capture import Method, capture
from palmtop.runtime.manifest import Dim, TensorSpec
from transformers.exporters import utils

from ..support.tiny_audio import tiny_audio_checkpoint

SAMPLES = TensorSpec("input_values", "float32", (Dim(symbol="batch", min=1), Dim(symbol="sequence", min=400, max=4000)))


@pytest.fixture(scope="module")
def sew(tmp_path_factory):
    folder = tiny_audio_checkpoint(tmp_path_factory.mktemp("sew"), "sew", "feature-extraction", num_hidden_layers=1)
    return transformers.AutoModel.from_pretrained(folder).eval()


def captured(model):
    method = Method(model, lambda module, inputs: module(**inputs).last_hidden_state)
    return capture(method, {"input_values": torch.randn(2, 3000)}, [SAMPLES], ["y"], trace=hf.trace)


def test_sew_takes_every_length(sew):
    program = captured(sew)
    assert program.inputs[0].dims[1] == SAMPLES.dims[1]
    for samples in (400, 2013, 2040, 3981):  # even and odd counts of frames
        sound = torch.randn(1, samples)
        with torch.no_grad():
            given, wanted = program.program.module()(input_values=sound)[0], sew(sound).last_hidden_state
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)


def test_sew_unpatched_takes_half_of_all_lengths(sew, monkeypatch):
    ours = {model_patches.sew_remembers_its_length, model_patches.sew_stretches_to_its_length}
    kept = [entry for entry in utils._PATCHES["dynamo"] if entry[2] not in ours]
    assert len(kept) == len(utils._PATCHES["dynamo"]) - 4
    monkeypatch.setitem(utils._PATCHES, "dynamo", kept)
    assert captured(sew).inputs[0].dims[1] != SAMPLES.dims[1]
