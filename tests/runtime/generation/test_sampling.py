"""Scores are processed as Transformers' logits processors process them, one by one and in their order."""

import numpy as np
import pytest
import torch
import transformers
from palmtop.runtime.errors import RequestError
from palmtop.runtime.generation import sampling
from palmtop.runtime.generation.settings import Settings

VOCABULARY, ROWS, LENGTH, LONGEST = 60, 3, 12, 20
EOS = [3, 7]
ENCODER_IDS = np.random.default_rng(9).integers(0, 8, (1, 15))

ONE_BY_ONE = {
    "temperature": {"do_sample": True, "temperature": 0.6, "top_k": 0},
    "top-k": {"do_sample": True, "top_k": 7},
    "top-k of all": {"do_sample": True, "top_k": 500},
    "top-p": {"do_sample": True, "top_k": 0, "top_p": 0.83},
    "top-p of next to nothing": {"do_sample": True, "top_k": 0, "top_p": 0.0},
    "min-p": {"do_sample": True, "top_k": 0, "min_p": 0.11},
    "typical": {"do_sample": True, "top_k": 0, "typical_p": 0.4},
    "epsilon": {"do_sample": True, "top_k": 0, "epsilon_cutoff": 0.02},
    "repetition penalty": {"repetition_penalty": 1.7},
    "encoder repetition penalty": {"encoder_repetition_penalty": 1.7},
    "no repeated pair": {"no_repeat_ngram_size": 2},
    "no repeated token": {"no_repeat_ngram_size": 1},
    "no pair of the encoder's": {"encoder_no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[4], [3], [5, 6], [1, 2, 3]]},
    "sequence bias": {"sequence_bias": [[[4], 2.5], [[1, 2], -1.5]]},
    "suppressed tokens": {"suppress_tokens": [0, 59]},
    "suppressed at the beginning": {"begin_suppress_tokens": [1, 2]},
    "forced first token": {"forced_bos_token_id": 11},
    "forced end": {"forced_eos_token_id": 3},
    "at least so many tokens": {"min_length": 14},
    "at least so many new tokens": {"min_new_tokens": 3},
    "an end that grows likelier": {"exponential_decay_length_penalty": [2, 1.3]},
    "only finite scores": {"remove_invalid_values": True},
    "normalised": {"renormalize_logits": True},
}
TOGETHER = {
    "a chat": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1},
    "all warpers": {
        "do_sample": True,
        "temperature": 1.3,
        "top_k": 30,
        "top_p": 0.95,
        "min_p": 0.02,
        "typical_p": 0.9,
        "epsilon_cutoff": 0.001,
    },
    "beams that sample": {"do_sample": True, "num_beams": 3, "top_k": 2, "top_p": 0.1, "min_p": 0.9},
    "a summary": {"no_repeat_ngram_size": 2, "min_length": 15, "forced_bos_token_id": 0, "forced_eos_token_id": 3},
    "a transcript": {"suppress_tokens": [4, 5], "begin_suppress_tokens": [6, 7], "forced_bos_token_id": 8},
    "everything against repetition": {
        "repetition_penalty": 1.2,
        "encoder_repetition_penalty": 0.8,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[1, 1]],
        "min_new_tokens": 9,
        "renormalize_logits": True,
    },
}


@pytest.fixture(scope="module")
def model():
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=1, n_positions=32)
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize("options", [*ONE_BY_ONE.values(), *TOGETHER.values()], ids=[*ONE_BY_ONE, *TOGETHER])
@pytest.mark.parametrize("prompt_length", [1, 8])
def test_scores_are_processed_as_transformers_does(model, options, prompt_length):
    ours = sampling.processors(
        Settings.of(eos_token_id=EOS, **options), prompt_length, LONGEST, ENCODER_IDS if prompt_length == 1 else None
    )
    config = transformers.GenerationConfig(**{"max_length": LONGEST, "eos_token_id": EOS, **options})
    config, _ = model._prepare_generation_config(config)
    config._eos_token_tensor = torch.tensor(EOS)
    if config.min_new_tokens:  # as `generate` prepares it
        config.min_length = config.min_new_tokens + prompt_length
    theirs = model._get_logits_processor(
        config,
        input_ids_seq_length=prompt_length,
        encoder_input_ids=torch.from_numpy(ENCODER_IDS) if prompt_length == 1 else None,
        device="cpu",
    )
    assert len(theirs) >= len(ours)
    random = np.random.default_rng(prompt_length)
    for length in range(prompt_length, LONGEST):
        ids = random.integers(0, 9, (ROWS, length))
        logits = (3 * random.standard_normal((ROWS, VOCABULARY))).astype(np.float32)
        if "remove_invalid_values" in options:
            logits[0, :3] = np.nan, np.inf, -np.inf
        before = logits.copy()
        expected = theirs(torch.from_numpy(ids), torch.from_numpy(logits.copy())).numpy()
        actual = sampling.process(ours, ids, logits)
        np.testing.assert_array_equal(np.isneginf(actual), np.isneginf(expected))
        np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)
        np.testing.assert_array_equal(logits, before)


def test_draws_follow_the_probabilities():
    random = np.random.default_rng(1)
    scores = np.array([[np.log(0.5), np.log(0.25), -np.inf, np.log(0.25)]], np.float32)
    drawn = np.concatenate([sampling.draw(scores, random) for _ in range(4000)])
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.0, 0.25], atol=0.03)
    assert shares[2] == 0


def test_one_seed_gives_one_sequence():
    scores = np.random.default_rng(0).standard_normal((1, 50)).astype(np.float32)

    def sequence(seed):
        random = np.random.default_rng(seed)
        return [int(sampling.draw(scores, random)[0]) for _ in range(20)]

    assert sequence(5) == sequence(5)
    assert sequence(5) != sequence(6)


@pytest.mark.parametrize(
    "options",
    [
        {"temprature": 1.0},
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 1.5},
        {"top_k": 2.5},
        {"max_new_tokens": -1},
        {"max_new_tokens": [3]},
        {"do_sample": "yes"},
        {"bad_words_ids": [[]]},
        {"bad_words_ids": 3},
        {"num_beams": 0},
        {"stop_strings": [""]},
        {"stop_strings": 4},
        {"early_stopping": "always"},
        {"seed": -1},
        {"repetition_penalty": 0},
        {"eos_token_id": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(RequestError):
        Settings.of(**options)


def test_what_a_call_says_comes_before_what_the_checkpoint_says():
    checkpoint = {"temperature": 0.6, "do_sample": True, "max_new_tokens": 9, "eos_token_id": 2, "cache": {"layers": 2}}
    settings = Settings.of(checkpoint, temperature=0.3, top_p=None, max_length=12)
    assert (settings.temperature, settings.do_sample, settings.eos_token_id) == (0.3, True, (2,))
    assert settings.longest(4, None) == 12
    assert Settings.of(checkpoint).longest(4, None) == 13
    assert Settings.of(checkpoint).longest(4, 10) == 10
    assert not Settings.of(checkpoint, temperature=0).do_sample


def test_a_checkpoints_default_that_makes_no_sense_is_none():
    settings = Settings.of({"eos_token_id": -1, "temperature": 0.0, "do_sample": True, "top_p": None, "top_k": "x"})
    assert settings == Settings()
