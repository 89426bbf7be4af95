"""Python tokenizers over SentencePiece models and bytes, rebuilt as steps that phones know, give the same ids."""

from __future__ import annotations

import dataclasses

import pytest
from palmtop.export.generation.languages import languages_of
from palmtop.export.source import open_source
from palmtop.export.tokenization.pieces import own_pieces
from palmtop.export.tokenization.rebuild import known_difference, rebuilt
from palmtop.export.tokenizer import carry_tokenizer, prove_tokenizer
from palmtop.runtime.errors import UnsupportedError
from palmtop.runtime.tokenizer import Tokenizer
from palmtop.runtime.tokenizer_spec import read_tokenizer_spec

from ..support.pieces import VARIANTS, marian, texts, trained
from ..support.spec_check import misread


@pytest.fixture(scope="module", params=VARIANTS)
def both(request, tmp_path_factory):
    """A Python tokenizer and what was rebuilt of it."""
    slow = VARIANTS[request.param](tmp_path_factory.mktemp("pieces"))
    return slow, rebuilt(slow)


def _texts(slow, count, seed=0):
    """Without Python's own spaces beside special tokens, which other libraries keep."""
    found = texts(count, seed, special=not hasattr(slow, "_add_eos_if_not_present"))
    return [text for text in found if not known_difference(slow, text)]


def test_the_same_ids_for_text_of_every_kind(both):
    slow, fast = both
    different = [text for text in _texts(slow, 800) if slow(text)["input_ids"] != fast(text)["input_ids"]]
    assert different == []


def test_pairs_are_put_together_alike(both):
    slow, fast = both
    for first, second in zip(_texts(slow, 30), _texts(slow, 30, seed=1), strict=False):
        assert fast(first, second)["input_ids"] == slow(first, second)["input_ids"]


def test_the_same_text_of_ids_with_and_without_special_tokens(both):
    slow, fast = both
    for text in _texts(slow, 250, seed=2):
        ids = slow(text)["input_ids"]
        for skip in (False, True):
            expected = slow.decode(ids, skip_special_tokens=skip)
            assert fast.decode(ids, skip_special_tokens=skip) == expected, text


def test_offsets_cover_the_words_of_the_text_in_order(both):
    _, fast = both
    text = "the question is on the table"
    found = fast(text, return_offsets_mapping=True)["offset_mapping"]
    spans = [span for span in found if span != (0, 0)]
    assert spans == sorted(spans)
    assert "".join(text[begin:end] for begin, end in spans).replace(" ", "") == text.replace(" ", "")


def test_the_plain_reader_gives_the_golden_vectors(both):
    slow, fast = both
    cases, wrong = misread(fast, slow)
    assert cases
    assert wrong == []


@pytest.mark.parametrize("name", ["marian", "blenderbot-small"])
def test_the_folder_of_a_bundle_is_read_without_python_code_of_the_tokenizer(name, checkpoint, tmp_path):
    made = VARIANTS[name](tmp_path / "files")
    made.save_pretrained(tmp_path / "checkpoint")
    slow = type(made).from_pretrained(tmp_path / "checkpoint")
    source = dataclasses.replace(
        open_source(checkpoint()), folder=tmp_path / "checkpoint", text=rebuilt(slow), slow_tokenizer=slow
    )
    spec = carry_tokenizer(source, tmp_path, ("input_ids", "attention_mask"), 64)
    prove_tokenizer(source, tmp_path / spec.path, spec)  # golden vectors, through the runtime's reader
    reader = Tokenizer.open(tmp_path / spec.path, spec)
    for text in _texts(slow, 40):
        expected = slow(text, truncation=True, max_length=64)["input_ids"]
        assert reader(text, truncation="longest_first").inputs["input_ids"][0].tolist() == expected
        assert reader.decode(expected, skip_special_tokens=True) == slow.decode(expected, skip_special_tokens=True)
    assert read_tokenizer_spec(tmp_path / spec.path / "tokenizer_spec.json")["inputs"] == [
        "input_ids",
        "attention_mask",
    ]
    assert spec.tokenizer_class == "PreTrainedTokenizerFast"
    assert (tmp_path / spec.path / "vocab.json").is_file()


# --- languages, and what no text is cut into ------------------------------------------------------------------------


def test_a_language_is_named_at_the_start_of_a_text_alone(tmp_path):
    slow = marian(tmp_path)
    fast = rebuilt(slow)
    french = slow.encoder[">>fr<<"]
    assert fast(">>fr<< the table")["input_ids"][0] == french
    assert french not in fast("the >>fr<< table")["input_ids"]
    assert fast(">>tlh<< the table")["input_ids"][0] == fast.unk_token_id


def test_languages_that_are_tokens_are_found_on_the_python_tokenizer(tmp_path):
    slow = VARIANTS["m2m_100"](tmp_path)
    found = languages_of(slow)
    assert found["source_language"] == "en"
    assert found["languages"]["fr"] == slow.get_lang_id("fr")
    assert rebuilt(slow)("the table")["input_ids"][0] == found["languages"]["en"]


def test_pieces_of_the_target_are_written_but_never_read(tmp_path):
    slow = marian(tmp_path)
    fast = rebuilt(slow)
    target_only = set(slow.encoder) - set(own_pieces(slow).used) - set(slow.all_special_tokens)
    piece = next(token for token in sorted(target_only) if token.startswith("▁") and token[1:].isalpha())
    token_id = slow.encoder[piece]
    assert token_id not in fast(piece.replace("▁", " "))["input_ids"]
    assert fast.decode([token_id]) == piece[1:]


def test_a_word_of_unknown_characters_is_looked_up_as_a_whole(tmp_path):
    slow = marian(tmp_path)
    fast = rebuilt(slow)
    assert slow.encoder["ꙮꙭ"] in fast("the ꙮꙭ table")["input_ids"]
    assert slow.encoder["ꙮ"] not in fast("the ꙮꙮ table")["input_ids"]


# --- what is refused ------------------------------------------------------------------------------------------------


def test_two_vocabularies_are_refused(tmp_path):
    slow = marian(tmp_path)
    slow.separate_vocabs = True
    with pytest.raises(UnsupportedError, match="two vocabularies") as caught:
        rebuilt(slow)
    assert "Remedy" in str(caught.value)


def test_pieces_without_ids_are_refused_where_pieces_are_merged(tmp_path):
    slow = VARIANTS["m2m_100 of pairs"](tmp_path)
    piece = own_pieces(slow).proto.pieces[3].piece
    del slow.encoder[piece]
    with pytest.raises(UnsupportedError, match="have no id") as caught:
        rebuilt(slow)
    assert piece in str(caught.value)


def test_the_model_of_the_tests_normalises_as_published_ones_do():
    assert len(trained()) > 200_000  # the map of nmt_nfkc lies in it
