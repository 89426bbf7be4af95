"""Beam search finds what `model.generate(num_beams=n)` finds."""

import numpy as np
import pytest
import torch
from palmtop.runtime.generation.beam import beam_search
from palmtop.runtime.generation.sampling import processors
from palmtop.runtime.generation.settings import Settings

from ...support.eager_decoder import EagerConversation, tiny_decoder, tiny_encoder_decoder

PAD = 39
PROMPT = np.array([[5, 9, 2]])
CASES = {
    "two beams": {"num_beams": 2},
    "five beams, all returned": {"num_beams": 5, "num_return_sequences": 5},
    "short is better": {"num_beams": 4, "length_penalty": -1.0, "num_return_sequences": 3},
    "long is better": {"num_beams": 4, "length_penalty": 2.5, "num_return_sequences": 3},
    "length does not matter": {"num_beams": 3, "length_penalty": 0.0, "num_return_sequences": 3},
    "stop when all beams ended": {"num_beams": 4, "early_stopping": True, "num_return_sequences": 4},
    "stop never early": {"num_beams": 4, "early_stopping": "never", "num_return_sequences": 4},
    "never early, canonical": {"num_beams": 4, "early_stopping": "never", "length_penalty": 0.0},
    "with processors": {"num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 4, "repetition_penalty": 1.3},
    "more ends than beams": {"num_beams": 2, "eos_token_id": [1, 4, 6, 8, 10, 12], "num_return_sequences": 2},
    "no end": {"num_beams": 3, "eos_token_id": None, "num_return_sequences": 2},
    "one token": {"num_beams": 3, "max_new_tokens": 1, "num_return_sequences": 3},
}


def search(conversation, prompt, options, **more):
    settings = Settings.of({"eos_token_id": [1, 4], "max_new_tokens": 14}, **options)
    if "eos_token_id" in options and options["eos_token_id"] is None:
        settings = Settings.of(max_new_tokens=14, **options)
    longest = settings.longest(prompt.shape[1], None)
    steps = processors(settings, prompt.shape[1], longest)
    return beam_search(conversation, prompt, settings, steps, longest, **more)


def reference(model, options, **inputs):
    asked = {"eos_token_id": [1, 4], "max_new_tokens": 14, **options}
    if asked["eos_token_id"] is None:
        model.generation_config.eos_token_id = None
    found = model.generate(
        **inputs, do_sample=False, pad_token_id=PAD, return_dict_in_generate=True, output_scores=True, **asked
    )
    return found.sequences.tolist(), found.sequences_scores.tolist()


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("seed", range(4))
def test_the_beams_of_a_decoder_are_those_of_generate(options, seed):
    model = tiny_decoder(seed)
    expected, scores = reference(model, options, input_ids=torch.from_numpy(PROMPT))
    found = search(EagerConversation(model), PROMPT, options)
    assert len(found) == len(expected)
    for hypothesis, sequence, score in zip(found, expected, scores, strict=True):
        ids = PROMPT[0].tolist() + list(hypothesis.ids)
        assert ids == sequence[: len(ids)]
        assert set(sequence[len(ids) :]) <= {PAD}
        assert hypothesis.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_beams_of_an_encoder_decoder_are_those_of_generate(options):
    model = tiny_encoder_decoder()
    source, start = np.array([[7, 11, 13, 2, 30]]), np.array([[0]])
    expected, scores = reference(model, options, input_ids=torch.from_numpy(source))
    found = search(EagerConversation(model, source), start, options)
    for hypothesis, sequence, score in zip(found, expected, scores, strict=True):
        ids = [0, *hypothesis.ids]
        assert ids == sequence[: len(ids)]
        assert hypothesis.score == pytest.approx(score, abs=1e-4)


def test_beams_that_are_drawn_follow_a_seed_and_differ_from_the_best():
    model, options = tiny_decoder(), {"num_beams": 3, "do_sample": True, "num_return_sequences": 3, "temperature": 3.0}

    def drawn(seed):
        return search(EagerConversation(model), PROMPT, options, random=np.random.default_rng(seed))

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(5)}) > 1


def test_a_cancelled_search_gives_what_it_has():
    steps = iter([False, False, False, True])
    found = search(EagerConversation(tiny_decoder()), PROMPT, {"num_beams": 2}, cancelled=lambda: next(steps))
    assert 1 <= len(found[0].ids) <= 3


def test_no_room_for_new_tokens_gives_none():
    (found,) = search(EagerConversation(tiny_decoder()), PROMPT, {"num_beams": 2, "max_new_tokens": 0})
    assert found.ids == ()
