"""Pieces of text are whole characters, make up the text together, and end before a stop string."""

import itertools
import random

import pytest
from palmtop.runtime.generation.stream import Detokenizer, StopStrings, pieces
from palmtop.runtime.manifest import TokenizerSpec
from palmtop.runtime.tokenizer import Tokenizer

from ...support.vocab import CORPUS
from ...support.vocabularies import KINDS

TEXTS = (
    *CORPUS,
    "Ünïcödé ζ 漢字仮名 👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u200b end",
    "  leading, trailing and   inner spaces \n\n\ttabs  ",
    "They don't, we can't: it's I'm you've , . ! ?",
    " ".join(CORPUS),
)


def tokenizer(kind, clean_up=False):
    spec = TokenizerSpec(".", kind, kind, 512, "right", "right", None, {}, {}, ("input_ids",), {})
    return Tokenizer(KINDS[kind](), spec, clean_up)


def streamed(ids, tokenizer, **options):
    return list(pieces(iter(ids), tokenizer, **options))


@pytest.mark.parametrize("clean_up", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_make_up_the_text(kind, clean_up):
    reader = tokenizer(kind, clean_up)
    for text in TEXTS:
        (window,) = reader.encode([text], truncation=None)
        ids = window.encoding.ids
        for skip in (True, False):
            found = streamed(ids, reader, skip_special_tokens=skip)
            whole = reader.decode(ids, skip_special_tokens=skip)
            assert "".join(found) == whole
            assert all("�" not in piece for piece in found) or "�" in whole
            assert all(found)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_in_any_order_make_up_the_text(kind):
    reader, choose = tokenizer(kind), random.Random(1)
    for _ in range(20):
        ids = choose.choices(range(reader.vocabulary_size), k=60)
        assert "".join(streamed(ids, reader)) == reader.decode(ids, skip_special_tokens=True)


def test_a_character_of_several_tokens_comes_whole():
    for kind in ("gpt2", "metaspace"):
        reader = tokenizer(kind)
        (window,) = reader.encode(["a ☃ b"], truncation=None, add_special_tokens=False)
        detokenizer = Detokenizer(reader)
        found = [detokenizer.push(i) for i in window.encoding.ids]
        assert len(found) > 5  # the snowman is in no vocabulary
        assert any("☃" in piece for piece in found)
        assert "".join(found) + detokenizer.finish() == "a ☃ b"


def test_bytes_that_are_no_character_do_not_hold_the_rest_up():
    reader = tokenizer("gpt2")
    (window,) = reader.encode([" fine"], truncation=None, add_special_tokens=False)
    detokenizer = Detokenizer(reader)
    given = "".join(detokenizer.push(i) for i in [reader.token_id("ÿ")] * 9)
    assert given == "�" * 8
    rest = "".join(detokenizer.push(i) for i in window.encoding.ids) + detokenizer.finish()
    assert rest == "� fine"


def test_long_text_is_decoded_from_its_end_only():
    reader = tokenizer("metaspace")
    (window,) = reader.encode([" ".join(CORPUS) * 20], truncation=None)
    longest, decode = 0, reader.decode

    def counting(ids, skip_special_tokens=False):
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids, skip_special_tokens)

    reader.decode = counting
    assert "".join(streamed(window.encoding.ids, reader)) == decode(window.encoding.ids, True)
    assert longest < 64


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_stop_string_is_found_across_pieces_and_never_given(cut):
    text = "One.\nUser: two"
    stop = StopStrings(["\nUser:", "three"])
    given = ""
    for start in range(0, len(text), cut):
        given += stop.push(text[start : start + cut])
        assert not any(given.endswith("\nUser:"[:size]) for size in range(1, 6))
        if stop.found:
            break
    assert (given, stop.found) == ("One.", "\nUser:")


def test_the_beginning_of_a_stop_string_is_given_once_it_is_none():
    stop = StopStrings(["aab", "END"])
    assert "".join(stop.push(piece) for piece in "aaaacEN") == "aaaac"
    assert stop.finish() == "EN"
    assert stop.found is None


def test_the_first_of_several_stop_strings_counts():
    stop = StopStrings(["later", "late"])
    assert stop.push("too later") == "too "
    assert stop.found == "late"


@pytest.mark.parametrize("kind", ["gpt2", "metaspace", "t5", "bert"])
def test_streaming_takes_no_more_tokens_after_a_stop_string(kind):
    reader = tokenizer(kind)
    (window,) = reader.encode(["one two three four"], truncation=None, add_special_tokens=False)
    taken = []
    source = (taken.append(i) or i for i in itertools.chain(window.encoding.ids, itertools.repeat(0)))
    assert "".join(pieces(source, reader, [" three", "never"])) == "one two"
    assert len(taken) <= len(window.encoding.ids)


def test_closing_a_stream_closes_its_source():
    reader = tokenizer("gpt2")
    (window,) = reader.encode(["one two three four"], truncation=None)
    closed = []

    def source():
        try:
            yield from window.encoding.ids
        finally:
            closed.append(True)

    stream = pieces(source(), reader)
    next(stream)
    assert not closed
    stream.close()
    assert closed
