"""A model is tried on pairs of texts where it can tell a second text from a first one."""

from __future__ import annotations

import pytest
from palmtop.export.source import open_source
from palmtop.export.subject import checkpoint_subject
from safetensors.torch import load_file, save_file

from .conftest import edit_json

TYPES = "bert.embeddings.token_type_embeddings.weight"


@pytest.mark.parametrize("kinds", [2, 1])
def test_pairs_are_cases_of_models_with_two_kinds_of_tokens(copy, kinds):
    folder = copy()
    weights = load_file(folder / "model.safetensors")
    weights[TYPES] = weights[TYPES][:kinds].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", lambda config: config.update(type_vocab_size=kinds))

    subject = checkpoint_subject(open_source(folder))

    paired = [case.name for case in [*subject.cases(), *subject.golden()] if "pair" in case.name]
    assert bool(paired) == (kinds == 2)
    assert any("takes no pairs" in note for note in subject.notes) == (kinds == 1)
