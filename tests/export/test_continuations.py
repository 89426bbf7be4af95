"""What artifacts must say is what `model.generate` says, with how sure the model was of each token."""

import numpy as np
import pytest
import torch
from palmtop.export.generation.continuations import Speaker
from palmtop.runtime.golden import DECODER_IDS, Expected
from palmtop.runtime.verify import Case

from ..support.eager_decoder import EagerConversation, tiny_decoder, tiny_encoder_decoder

PROMPT = np.array([[5, 9, 2]])


@pytest.mark.parametrize("context", [64, 10])
def test_a_decoder_goes_on_as_generate_does(context):
    model = tiny_decoder(2)
    said = Speaker(model, context).say({"input_ids": PROMPT})
    room = min(64, context - 3)
    expected = model.generate(torch.from_numpy(PROMPT), max_new_tokens=room, do_sample=False)[0, 3:].tolist()
    assert list(said.ids) == expected
    conversation = EagerConversation(model)
    for ids, token, margin in zip([PROMPT, *np.array(said.ids)[:, None, None]], said.ids, said.margins, strict=False):
        second, first = np.sort(conversation.feed(ids)[0])[-2:]
        assert conversation.length <= context
        assert first - second == pytest.approx(margin, rel=1e-2, abs=1e-4)
        assert token == int(conversation.model(torch.from_numpy(conversation.ids)).logits[0, -1].argmax())


def test_what_the_decoder_is_compared_on_does_not_matter_to_what_it_says():
    model = tiny_encoder_decoder()
    speaker = Speaker(model, 20)
    said = speaker.say({"input_ids": PROMPT, DECODER_IDS: np.array([[0, 7, 8]])})
    assert said is speaker.say({"input_ids": PROMPT})
    expected = model.generate(torch.from_numpy(PROMPT), max_new_tokens=19, do_sample=False)[0, 1:].tolist()
    assert list(said.ids) == expected


def test_the_first_inputs_of_one_row_are_gone_on_from():
    cases = [
        Case(str(index), {"input_ids": np.repeat(PROMPT + index, rows, axis=0)}, {"logits": [Expected((), 1, PROMPT)]})
        for index, rows in enumerate((1, 2, 1, 1, 1))
    ]
    said = [case.generated is not None for case in Speaker(tiny_decoder(), 64).cases(cases)]
    assert said == [True, False, True, True, False]


def test_nothing_is_asked_where_transformers_cannot_generate_or_nothing_fits():
    class Silent(torch.nn.Module):
        config = tiny_decoder().config

    assert Speaker(Silent(), 64).say({"input_ids": PROMPT}) is None
    assert Speaker(tiny_decoder(), 3).say({"input_ids": PROMPT}) is None
