"""A decoder needs room for a few tokens, and must be given all that it reads: otherwise it is refused."""

from types import SimpleNamespace

import pytest
import torch
from palmtop.export.generation.subject import generation_inputs, route_of
from palmtop.export.running import NotRun
from palmtop.export.source import open_source
from palmtop.export.subject import checkpoint_subject
from palmtop.export.tasks import get_task
from palmtop.runtime.errors import RequestError, UnsupportedError
from palmtop.runtime.manifest import Dim, TensorSpec

from ..coverage.checkpoints import make_checkpoint


@pytest.mark.parametrize("length", [1, 7])
def test_a_context_too_short_to_generate_in_is_refused(tmp_path, length):
    made = make_checkpoint(tmp_path / "checkpoint", "gpt2", "text-generation")

    with pytest.raises(RequestError, match=f"at least 8 tokens, and checkpoint would have {length}"):
        checkpoint_subject(open_source(made.folder), max_length=length)


@pytest.mark.parametrize(("task", "kind"), [("image-to-text", "image"), ("automatic-speech-recognition", "audio")])
def test_a_decoder_that_should_see_or_hear_is_not_exported_blind_and_deaf(task, kind):
    model = torch.nn.Identity()
    model.config = SimpleNamespace(is_encoder_decoder=False)

    with pytest.raises(UnsupportedError, match=f"Identity reads {kind} and text with one decoder"):
        generation_inputs(SimpleNamespace(task=get_task(task)), model, None, None)


def test_a_decoder_that_does_not_run_as_others_do_is_no_bug():
    class Bare(torch.nn.Module):
        config = SimpleNamespace(is_encoder_decoder=False)

        def forward(self, input_ids: torch.Tensor, past_key_values: object = None) -> None:
            """It has no embeddings to be asked for."""

    with pytest.raises(NotRun, match="Bare does not run on what palmtop feeds it"):
        route_of(Bare(), SimpleNamespace(specs=[TensorSpec("input_ids", "int64", (Dim(size=16),))]))
