"""Longformer's attention as it is traced gives what Longformer's own gives, for every mask."""

import pytest
import torch
import transformers
from palmtop.export import hf, model_patches_longformer
from palmtop.export.capture import Method, capture
from palmtop.runtime.errors import UnsupportedError
from palmtop.runtime.manifest import Dim, TensorSpec
from transformers.exporters import utils

from tests.coverage.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def longformer(tmp_path_factory):
    made = make_checkpoint(tmp_path_factory.mktemp("longformer"), "longformer", "feature-extraction")
    return transformers.AutoModel.from_pretrained(made.folder).eval()


@pytest.mark.parametrize("length", [5, 16, 37])
@pytest.mark.parametrize("everywhere", [(), (0,), (0, 3, 4)])
def test_dense_attention_is_the_sparse_one(longformer, length, everywhere):
    ids = torch.randint(5, 200, (2, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[1, length - 2 :] = 0
    whole = torch.zeros_like(ids)
    whole[:, list(everywhere)] = 1
    feeds = {"input_ids": ids, "attention_mask": mask, "global_attention_mask": whole}

    with torch.no_grad():
        wanted = longformer(**feeds).last_hidden_state
        with utils.apply_patches("dynamo"):
            given = longformer(**feeds).last_hidden_state

    torch.testing.assert_close(given[mask == 1], wanted[mask == 1], rtol=1e-4, atol=1e-4)


def test_the_first_separator_is_found_in_every_row():
    find = model_patches_longformer.first_separator(lambda *_: None)

    assert find(torch.tensor([[0, 9, 2, 2, 7, 2], [0, 2, 2, 8, 8, 2]]), 2).tolist() == [2, 1]


def test_longformer_unpatched_is_not_captured(longformer, monkeypatch):
    ours = {value for value in vars(model_patches_longformer).values() if callable(value)}
    monkeypatch.setitem(utils._PATCHES, "dynamo", [entry for entry in utils._PATCHES["dynamo"] if entry[2] not in ours])
    ids = TensorSpec("input_ids", "int64", (Dim(symbol="batch", min=1), Dim(symbol="sequence", min=1, max=64)))
    method = Method(longformer, lambda module, inputs: module(**inputs).last_hidden_state)

    with pytest.raises(UnsupportedError, match="cannot capture"):
        capture(method, {"input_ids": torch.randint(5, 200, (2, 12))}, [ids], ["y"], trace=hf.trace)


def test_choices_get_the_global_attention_that_they_have_one_by_one(tmp_path):
    made = make_checkpoint(tmp_path, "longformer", "multiple-choice")
    model = transformers.AutoModelForMultipleChoice.from_pretrained(made.folder).eval()
    separator = model.config.sep_token_id
    ids = torch.randint(5, 60, (2, 3, 14), generator=torch.Generator().manual_seed(1))
    ids[ids == separator] += 1
    for choice, end in enumerate((4, 6, 7)):
        ids[:, choice, [end, end + 1, 13]] = separator

    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        with utils.apply_patches("dynamo"):
            given = model(input_ids=ids).logits

    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [5, 37])
def test_leds_encoder_attends_alike(tmp_path, length):
    made = make_checkpoint(tmp_path, "led", "text2text-generation")
    encoder = transformers.AutoModelForSeq2SeqLM.from_pretrained(made.folder).eval().get_encoder()
    ids = torch.randint(5, 60, (2, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[1, length - 2 :] = 0
    first = torch.zeros_like(ids)
    first[:, 0] = 1
    feeds = {"input_ids": ids, "attention_mask": mask, "global_attention_mask": first}

    with torch.no_grad():
        wanted = encoder(**feeds).last_hidden_state[:, :length]
        with utils.apply_patches("dynamo"):
            given = encoder(**feeds).last_hidden_state

    torch.testing.assert_close(given[mask == 1], wanted[mask == 1], rtol=1e-4, atol=1e-4)
