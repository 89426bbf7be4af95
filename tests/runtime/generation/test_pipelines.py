"""Pipelines that generate give what `transformers.pipeline`, or `model.generate`, gives for the checkpoint."""

import threading

import numpy as np
import pytest
import torch
import transformers
from palmtop.runtime.errors import RequestError

from ...support.generating import (
    decoder_checkpoint,
    encoder_decoder_checkpoint,
    generating_pipeline,
    picture_checkpoint,
    picture_pipeline,
)
from ..pipelines.common import reference
from .chat_templates import TEMPLATES

PROMPTS = ["Set an alarm for", "Réveille-moi à", "今天", "🙂"]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it raining?"}]
BEGUN = [{"role": "user", "content": "Is it raining?"}, {"role": "assistant", "content": "It is"}]
KINDS = ("tiktoken", "metaspace")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = {}

    def make(kind):
        if kind not in made:
            template = TEMPLATES["qwen"]
            made[kind] = decoder_checkpoint(tmp_path_factory.mktemp(kind), kind, template)
        return made[kind]

    return make


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory):
    return encoder_decoder_checkpoint(tmp_path_factory.mktemp("seq2seq"))


def plain(results):
    return [[entry.to_dict() for entry in result] for result in results]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_full_text": False},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3},
        {"num_beams": 3, "num_return_sequences": 2},
    ],
)
def test_text_is_what_transformers_gives(folder, kind, options):
    ours, theirs = generating_pipeline(folder(kind)), reference("text-generation", folder(kind))
    options = {"max_new_tokens": 12, "do_sample": False, **options}
    assert plain(ours(PROMPTS, **options)) == theirs(PROMPTS, **options)
    assert plain([ours(PROMPTS[0], **options)]) == [theirs(PROMPTS[0], **options)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chat", [CHAT, BEGUN], ids=["answered", "gone on with"])
def test_a_chat_is_answered_as_transformers_does(folder, kind, chat):
    ours, theirs = generating_pipeline(folder(kind)), reference("text-generation", folder(kind))
    options = {"max_new_tokens": 10, "do_sample": False}
    assert plain([ours(chat, **options)]) == [theirs(chat, **options)]
    assert plain(ours([chat, CHAT], **options)) == theirs([chat, CHAT], **options)
    assert ours(chat, chat_variables={"enable_thinking": False}, **options) != ours(CHAT, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", [*PROMPTS, CHAT, BEGUN], ids=lambda p: p if isinstance(p, str) else "chat")
def test_a_stream_is_the_text_in_pieces(folder, kind, prompt):
    pipeline = generating_pipeline(folder(kind))
    options = {"max_new_tokens": 24, "do_sample": True, "temperature": 1.5, "seed": 3}
    found = list(pipeline.stream(prompt, **options))
    (whole,) = pipeline(prompt, return_full_text=False, **options)
    assert "".join(found) == whole.generated_text
    assert len(found) > 3


def test_a_stop_string_ends_the_text_before_it(folder):
    pipeline = generating_pipeline(folder("tiktoken"))
    options = {"max_new_tokens": 30, "return_full_text": False}
    (whole,) = pipeline(PROMPTS[0], **options)
    stop = whole.generated_text[7:11]
    (cut,) = pipeline(PROMPTS[0], stop_strings=["never there", stop], **options)
    assert cut.generated_text == whole.generated_text[: whole.generated_text.index(stop)]
    del options["return_full_text"]
    assert "".join(pipeline.stream(PROMPTS[0], stop_strings=stop, **options)) == cut.generated_text


def test_a_special_token_is_a_stop_string_too(folder):
    pipeline = generating_pipeline(folder("tiktoken"))
    settings = pipeline.generator.settings(stop_strings=["<|pad|>", "text"], eos_token_id=2)
    assert settings.eos_token_id == (2, pipeline.tokenizer.token_id("<|pad|>"))


def test_work_ends_when_it_is_cancelled_or_closed(folder):
    pipeline = generating_pipeline(folder("tiktoken"))
    calls, model = [], pipeline.generator.session.decoder.session.runner
    run, model.call = model.call, lambda feeds: calls.append(1) or run(feeds)
    event = threading.Event()
    stream = pipeline.stream(PROMPTS[0], max_new_tokens=60, eos_token_id=[], cancel=event)
    next(stream)
    event.set()
    list(stream)
    assert len(calls) < 20
    stream = pipeline.stream(PROMPTS[0], max_new_tokens=60)
    next(stream)
    before = len(calls)
    stream.close()
    assert len(calls) == before


def test_an_empty_prompt_begins_with_the_first_token(folder):
    ours = generating_pipeline(folder("metaspace"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder("metaspace"))
    job = ours.generator.job((), ours.generator.settings(max_new_tokens=5))
    expected = model.generate(torch.tensor([[model.config.bos_token_id]]), max_new_tokens=5, do_sample=False)
    assert ours.generator.texts(job) == [ours.tokenizer.decode(expected[0].tolist(), True)]


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (3, {}),
        ([3], {}),
        ([], {"temprature": 1}),
        (PROMPTS[0], {"temprature": 1}),
        ("word " * 200, {}),
        ([{"content": "no role"}], {}),
        (PROMPTS[0], {"num_return_sequences": 2}),
    ],
)
def test_requests_that_make_no_sense_are_refused(folder, inputs, options):
    pipeline = generating_pipeline(folder("tiktoken"))
    if inputs == []:
        assert pipeline([]) == []
        return
    with pytest.raises(RequestError):
        pipeline(inputs, **options)


def test_beams_are_streamed_as_one_piece_and_several_texts_not_at_all(folder):
    pipeline, options = generating_pipeline(folder("tiktoken"), num_beams=2), {"max_new_tokens": 8}
    (whole,) = pipeline(PROMPTS[0], return_full_text=False, **options)
    assert list(pipeline.stream(PROMPTS[0], **options)) == [whole.text]
    with pytest.raises(RequestError, match="streamed"):
        pipeline.stream(PROMPTS[0], num_return_sequences=2, **options)


def test_a_model_without_a_chat_template_says_so(tmp_path):
    pipeline = generating_pipeline(decoder_checkpoint(tmp_path))
    with pytest.raises(RequestError, match="chat template"):
        pipeline(CHAT)


def their_texts(folder, texts, **options):
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        ids = model.generate(**tokenizer(text, return_tensors="pt"), do_sample=False, **options)
        found.append([{"generated_text": text} for text in tokenizer.batch_decode(ids, skip_special_tokens=True)])
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
        {"encoder_no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.5, "repetition_penalty": 1.3},
    ],
)
def test_text_from_text_is_what_generate_gives(seq2seq, options):
    options = {"max_new_tokens": 12, **options}
    assert plain(generating_pipeline(seq2seq)(PROMPTS, **options)) == their_texts(seq2seq, PROMPTS, **options)


def test_text_from_text_is_streamed(seq2seq):
    pipeline = generating_pipeline(seq2seq)
    found = list(pipeline.stream(PROMPTS[0], max_new_tokens=12))
    assert [[{"generated_text": "".join(found)}]] == their_texts(seq2seq, PROMPTS[:1], max_new_tokens=12)


def test_tasks_of_the_checkpoint_bring_their_prefix_and_defaults(seq2seq):
    tasks = {
        "summarization": {"prefix": "in short: ", "max_new_tokens": 6, "num_beams": 2},
        "translation_en_to_fr": {"prefix": "to French: ", "max_new_tokens": 5},
    }
    pipeline = generating_pipeline(seq2seq, task_specific_params=tasks)
    short = their_texts(seq2seq, ["in short: " + PROMPTS[0]], max_new_tokens=6, num_beams=2)
    assert plain([pipeline(PROMPTS[0], task="summarization")]) == short
    french = their_texts(seq2seq, ["to French: " + PROMPTS[0]], max_new_tokens=5)
    assert plain([pipeline(PROMPTS[0], src_lang="en", tgt_lang="fr")]) == french
    other = their_texts(seq2seq, ["other: " + PROMPTS[0]], max_new_tokens=5)
    assert plain([pipeline(PROMPTS[0], src_lang="en", tgt_lang="fr", prefix="other: ")]) == other
    for wrong in ({"task": "poetry"}, {"src_lang": "en", "tgt_lang": "xx"}, {"tgt_lang": "fr"}):
        with pytest.raises(RequestError):
            pipeline(PROMPTS[0], **wrong)


def test_languages_that_are_tokens_go_into_text_and_answer(seq2seq):
    last = generating_pipeline(seq2seq).tokenizer.encode(["a"])[0].encoding.ids[-1]  # what the tokenizer puts behind
    languages = {"en_XX": last, "fr_XX": 20, "de_DE": 21}
    pipeline = generating_pipeline(seq2seq, languages=languages, source_language="en_XX")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(seq2seq)
    (window,) = pipeline.tokenizer.encode([PROMPTS[0]])
    ids = torch.tensor([[*window.encoding.ids[:-1], 20]])
    expected = model.generate(ids, forced_bos_token_id=21, max_new_tokens=8, do_sample=False)
    (found,) = pipeline(PROMPTS[0], src_lang="fr_XX", tgt_lang="de_DE", max_new_tokens=8)
    assert found.generated_text == pipeline.tokenizer.decode(expected[0].tolist(), True)
    with pytest.raises(RequestError, match="xx_XX"):
        pipeline(PROMPTS[0], tgt_lang="xx_XX")


def test_texts_longer_than_the_encoder_are_cut_only_when_asked(seq2seq):
    pipeline = generating_pipeline(seq2seq, longest=6)
    with pytest.raises(RequestError, match="takes"):
        pipeline("word " * 20)
    assert pipeline("word " * 20, truncation=True, max_new_tokens=3) == pipeline(
        "word " * 30, truncation=True, max_new_tokens=3
    )


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"prompt": "<|end|>Set an"}])
def test_text_of_a_picture_is_what_generate_gives(tmp_path, options):
    folder = picture_checkpoint(tmp_path)
    pipeline = picture_pipeline(folder)
    model = transformers.VisionEncoderDecoderModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    picture = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    asked = {"max_new_tokens": 10, **{name: value for name, value in options.items() if name != "prompt"}}
    begun = tokenizer(options.get("prompt", ""), add_special_tokens=False, return_tensors="pt")["input_ids"]
    given = {"decoder_input_ids": begun} if begun.shape[1] else {}
    pixels = torch.from_numpy(np.array(processor(picture)["pixel_values"]))
    ids = model.generate(pixels, do_sample=False, **given, **asked)[0, begun.shape[1] + (not given) :]
    (found,) = pipeline(picture, **asked, prompt=options.get("prompt"))
    assert found.text == tokenizer.decode(ids, skip_special_tokens=True)
    if "num_beams" not in options:
        assert "".join(pipeline.stream(picture, **asked, prompt=options.get("prompt"))) == found.text


@pytest.mark.parametrize(
    "generation",
    [
        {"num_beams": 4, "max_length": 24, "bad_words_ids": [[3]], "forced_eos_token_id": 2},  # as Marian's have it
        {
            "num_beams": 4,
            "max_length": 22,
            "min_length": 8,
            "no_repeat_ngram_size": 3,
            "early_stopping": True,
            "length_penalty": 2.0,
            "forced_bos_token_id": 1,
            "forced_eos_token_id": 2,
        },  # BART's for summaries
    ],
    ids=["translation", "summary"],
)
def test_the_generation_config_of_a_checkpoint_is_followed(tmp_path, generation):
    folder = encoder_decoder_checkpoint(tmp_path, **generation)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pipeline = generating_pipeline(folder)
    for prompt in PROMPTS:
        (found,) = pipeline(prompt)
        ids = model.generate(**tokenizer(prompt, return_tensors="pt"))
        assert found.text == tokenizer.decode(ids[0], skip_special_tokens=True)
