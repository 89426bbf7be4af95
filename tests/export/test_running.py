"""A model that does not run on palmtop's inputs is refused with what it said; a full memory is no fault of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from palmtop.export.reference import Reference, refuse_no_numbers
from palmtop.export.running import NotRun, running
from palmtop.runtime.errors import DamagedError, RequestError, UnsupportedError
from palmtop.runtime.golden import Expected
from palmtop.runtime.manifest import TensorSpec
from palmtop.runtime.verify import Case


class Choosy(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, bbox: torch.Tensor | None = None) -> torch.Tensor:
        if bbox is None:
            raise ValueError("You have to specify bbox\nand more that nobody reads")
        return input_ids


def test_what_a_model_says_is_told_with_its_inputs_and_a_remedy():
    reference = Reference(Choosy(), lambda model, given: model(**given), (TensorSpec("ids", "int64", ()),))

    with pytest.raises(NotRun) as caught:
        reference.run({"input_ids": np.ones((1, 3), np.int64)})

    assert isinstance(caught.value, UnsupportedError)
    assert "Choosy does not run on what palmtop feeds it (input_ids)" in str(caught.value)
    assert "ValueError: You have to specify bbox\nRemedy: " in str(caught.value)


def test_a_classifier_that_cannot_tell_padding_from_text_is_told_where_to_say_it():
    with pytest.raises(NotRun, match="Remedy: set pad_token_id"), running(Choosy(), ["input_ids"]):
        raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")


def test_a_full_memory_is_told_as_that():
    with pytest.raises(MemoryError), running(Choosy(), ["input_ids"]):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")


def test_palmtops_own_errors_stay_what_they_are():
    with pytest.raises(RequestError, match="no such label"), running(Choosy(), ["input_ids"]):
        raise RequestError("no such label")


def test_a_model_that_gives_no_number_at_all_is_damaged():
    nothing = Expected.of(np.full((2, 3), np.nan, np.float32))
    cases = [Case("one", {}, {"logits": [nothing, nothing]})]

    with pytest.raises(DamagedError, match="tiny itself, in PyTorch and fp32, gives no finite number as logits"):
        refuse_no_numbers(cases, [TensorSpec("logits", "float32", ())], "tiny")


def test_one_infinity_among_numbers_is_for_parity_to_judge():
    some = Expected.of(np.array([1.0, np.inf], np.float32))

    refuse_no_numbers([Case("one", {}, {"logits": [some]})], [TensorSpec("logits", "float32", ())], "tiny")
