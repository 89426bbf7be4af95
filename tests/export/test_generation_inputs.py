"""A decoder needs room for a few tokens; one that would have less is refused with how much it needs."""

import pytest
from palmtop.export.source import open_source
from palmtop.export.subject import checkpoint_subject
from palmtop.runtime.errors import RequestError

from ..coverage.checkpoints import make_checkpoint


@pytest.mark.parametrize("length", [1, 7])
def test_a_context_too_short_to_generate_in_is_refused(tmp_path, length):
    made = make_checkpoint(tmp_path / "checkpoint", "gpt2", "text-generation")

    with pytest.raises(RequestError, match=f"at least 8 tokens, and checkpoint would have {length}"):
        checkpoint_subject(open_source(made.folder), max_length=length)
