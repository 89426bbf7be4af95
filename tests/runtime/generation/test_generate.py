"""Greedy and beam output is `model.generate`'s, and generation ends when it should."""

import threading

import numpy as np
import pytest
import torch
from palmtop.runtime.errors import RequestError
from palmtop.runtime.generation.generate import Job, sequences, tokens
from palmtop.runtime.generation.settings import Settings

from ...support.eager_decoder import EagerConversation, tiny_decoder, tiny_encoder_decoder

PROMPT = (5, 9, 2)


def job(model_seed=0, prompt=PROMPT, context=64, cancel=None, **options):
    model = tiny_decoder(model_seed)
    settings = Settings.of({"eos_token_id": [1], "max_new_tokens": 40}, **options)
    return Job(lambda: EagerConversation(model), prompt, settings, context, cancel=cancel), model


def generated(model, prompt=PROMPT, **options):
    asked = {"eos_token_id": [1], "max_new_tokens": 40, "do_sample": False, "pad_token_id": 39, **options}
    return model.generate(torch.tensor([prompt]), **asked)[:, len(prompt) :].tolist()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"max_length": 12, "max_new_tokens": None, "forced_eos_token_id": 1},
        {"min_new_tokens": 20, "eos_token_id": [1, 3, 5, 7]},
        {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 12},
    ],
)
def test_output_is_that_of_generate(seed, options):
    asked, model = job(seed, **options)
    for ours, theirs in zip(sequences(asked), generated(model, **options), strict=True):
        assert ours == theirs[: len(ours)]
        assert set(theirs[len(ours) :]) <= {39}


@pytest.mark.parametrize(
    "options", [{}, {"encoder_no_repeat_ngram_size": 1}, {"num_beams": 2, "forced_bos_token_id": 6}]
)
def test_output_of_an_encoder_decoder_is_that_of_generate(options):
    model, source = tiny_encoder_decoder(), np.array([[7, 11, 13, 2, 30]])
    settings = Settings.of(eos_token_id=1, max_new_tokens=15, **options)
    asked = Job(lambda: EagerConversation(model, source), (0,), settings, encoder_ids=source)
    expected = model.generate(torch.from_numpy(source), max_new_tokens=15, eos_token_id=1, do_sample=False, **options)
    (found,) = sequences(asked)
    assert found == expected[0, 1 : 1 + len(found)].tolist()


def test_the_end_token_ends_it_and_is_given():
    asked, _ = job(eos_token_id=list(range(2, 40)))
    assert len(list(tokens(asked))) == 1


def test_it_ends_at_the_context():
    asked, _ = job(context=10, eos_token_id=None)
    assert len(list(tokens(asked))) == 7


@pytest.mark.parametrize("prompt", [(), (1,) * 64])
def test_a_prompt_that_is_empty_or_too_long_is_refused(prompt):
    with pytest.raises(RequestError):
        list(tokens(job(prompt=prompt)[0]))


def test_an_event_cancels_and_so_does_closing():
    event = threading.Event()
    asked, _ = job(eos_token_id=None, cancel=event)
    running = tokens(asked)
    first = [next(running), next(running)]
    event.set()
    assert list(running) == []
    again, _ = job(eos_token_id=None)
    assert [token for token, _ in zip(tokens(again), range(2), strict=False)] == first
    stopped = tokens(again)
    next(stopped)
    stopped.close()
    assert list(stopped) == []


def test_a_function_cancels():
    answers = iter([False, False, False, True])
    asked, _ = job(eos_token_id=None, cancel=lambda: next(answers))
    assert len(list(tokens(asked))) == 3


def test_samples_follow_the_seed_and_differ_from_each_other():
    asked, _ = job(do_sample=True, seed=4, num_return_sequences=3, temperature=2.0)
    again, _ = job(do_sample=True, seed=4, num_return_sequences=3, temperature=2.0)
    found = sequences(asked)
    assert found == sequences(again)
    assert len({tuple(ids) for ids in found}) == 3


@pytest.mark.parametrize("options", [{"num_return_sequences": 2}, {"num_beams": 2, "num_return_sequences": 3}])
def test_more_sequences_than_can_differ_are_refused(options):
    with pytest.raises(RequestError):
        sequences(job(**options)[0])
