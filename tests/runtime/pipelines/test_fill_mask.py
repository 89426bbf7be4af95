"""Fill-mask gives the tokens, scores and sequences that Transformers gives."""

import pytest
from palmtop.runtime.errors import RequestError

from ...support.torch_session import torch_pipeline
from .common import KINDS, LONG_TEXT, assert_same, reference

TASK = "fill-mask"


@pytest.mark.parametrize("kind", KINDS)
def test_one_mask_is_filled_as_transformers_fills_it(checkpoint, kind):
    folder = checkpoint(kind, TASK)
    ours, theirs = torch_pipeline(folder, TASK), reference(TASK, folder)
    for text in ("Wolfgang lives in {} and works.", "{}", "Où est {} ? 🙂 내일", "the end, {}"):
        masked = text.format(ours.mask_token)
        assert_same(ours(masked), theirs(masked))
        assert_same(ours(masked, top_k=3), theirs(masked, top_k=3))


@pytest.mark.parametrize("kind", KINDS)
def test_several_masks_give_a_list_each(checkpoint, kind):
    folder = checkpoint(kind, TASK)
    ours = torch_pipeline(folder, TASK)
    text = f"{ours.mask_token} lives in {ours.mask_token}."
    result = ours(text, top_k=2)
    assert_same(result, reference(TASK, folder)(text, top_k=2))
    assert [len(fills) for fills in result] == [2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_targets_limit_what_is_considered(checkpoint, kind):
    folder = checkpoint(kind, TASK)
    ours, theirs = torch_pipeline(folder, TASK), reference(TASK, folder)
    text = f"He lives in {ours.mask_token}."
    for targets in (["the", "in", "book"], "the", ["unknownword"]):
        assert_same(ours(text, targets=targets), theirs(text, targets=targets))


def test_clean_up_of_spaces_follows_the_tokenizer_settings(checkpoint):
    folder = checkpoint("bert", TASK, tokenizer_options={"clean_up_tokenization_spaces": True})
    text = "it is [MASK], isn't it? no!"
    assert_same(torch_pipeline(folder, TASK)(text), reference(TASK, folder)(text))


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_list_gives_a_list_in_its_order(checkpoint, batch_size):
    pipeline = torch_pipeline(checkpoint("bert", TASK), TASK)
    texts = ["[MASK]", "a [MASK] b c d e f g", "x [MASK] y [MASK]", "the [MASK]"]
    for text, result in zip(texts, pipeline(texts, batch_size=batch_size), strict=True):
        alone = pipeline(text)
        expected = [[f.to_dict() for f in fills] for fills in alone] if isinstance(alone[0], list) else alone
        assert_same(result, expected if isinstance(alone[0], list) else [f.to_dict() for f in alone])


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (("no mask",), r"Input 0 has no \[MASK\]"),
        ((["[MASK]", ""],), r"Input 1 has no \[MASK\]"),
        ((LONG_TEXT + "[MASK]",), "cut off"),
        ((None,), "Expected a text"),
    ],
)
def test_a_text_with_nothing_to_fill_is_refused(checkpoint, call, reason):
    with pytest.raises(RequestError, match=reason):
        torch_pipeline(checkpoint("bert", TASK), TASK)(*call)


@pytest.mark.parametrize("targets", [[], [""], [3], 3])
def test_targets_that_are_no_tokens_are_refused(checkpoint, targets):
    with pytest.raises(RequestError):
        torch_pipeline(checkpoint("bert", TASK), TASK)("[MASK]", targets=targets)
