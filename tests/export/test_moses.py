"""XLM's and FlauBERT's Python tokenizers, rebuilt as steps that phones know, give the same ids."""

from __future__ import annotations

import json

import pytest
from palmtop.export.source import open_source
from palmtop.export.tokenization.golden import tokenizer_cases
from palmtop.export.tokenization.moses import moses_backend
from palmtop.export.tokenization.rebuild import rebuilt
from palmtop.runtime.errors import UnsupportedError
from tokenizers import Tokenizer, normalizers

from ..support.moses import FRENCH, VARIANTS, flaubert, texts
from ..support.spec_check import misread

GREETING = "Bonjour, comment vas-tu?"


@pytest.fixture(scope="module", params=VARIANTS)
def both(request, tmp_path_factory):
    """A slow tokenizer and the pipeline that was made of it."""
    slow = VARIANTS[request.param](tmp_path_factory.mktemp("moses"))
    return slow, moses_backend(slow)


def test_the_same_ids_for_french_english_and_mixed_text(both):
    slow, fast = both
    different = [text for text in texts(2500) if slow(text)["input_ids"] != fast.encode(text).ids]
    assert different == []


def test_the_texts_take_every_rule_apart(both):
    """Without any one of its steps, the pipeline differs somewhere: the texts above would notice."""
    slow, fast = both
    data = json.loads(fast.to_str())
    steps = data["normalizer"]["normalizers"]
    probes = texts(1500, seed=3)
    expected = [slow(text)["input_ids"] for text in probes]
    kinds = ("NFC", "NFD")
    for leave in [i for i, step in enumerate(steps) if step["type"] in kinds or " . " in step.get("content", "")]:
        data["normalizer"]["normalizers"] = steps[:leave] + steps[leave + 1 :]
        without = Tokenizer.from_str(json.dumps(data))
        assert any(without.encode(text).ids != ids for text, ids in zip(probes, expected, strict=True)), steps[leave]


def test_pairs_and_types(both):
    slow, fast = both
    for first, second in zip(FRENCH, texts(40)[20:], strict=False):
        expected, found = slow(first, second, return_token_type_ids=True), fast.encode(first, second)
        assert (found.ids, found.type_ids) == (expected["input_ids"], expected["token_type_ids"])


def test_decoded_text(both):
    slow, fast = both
    for text in texts(300):
        ids = slow(text)["input_ids"]
        decoded = fast.decode(ids, skip_special_tokens=True)
        assert decoded.strip() == slow.decode(ids, skip_special_tokens=True).strip()


def test_the_plain_reader_gives_the_golden_vectors(both):
    slow, _ = both
    cases, wrong = misread(rebuilt(slow), slow)
    assert GREETING in {case.text for case in cases}
    assert wrong == []


@pytest.mark.parametrize("name", ["flaubert lower-cased", "xlm"])
def test_a_final_sigma_is_written_as_python_writes_it(tmp_path, name):
    slow = VARIANTS[name](tmp_path)
    fast = moses_backend(slow)
    for text in ("ΟΔΟΣ ΟΔΟΣ", "Σ ΣΣ", "ç‘Σ", "aΣ.b", "aΣ:", "a\u00adΣ\u0301 Σ", "1Σ", "ΑΣ'Α", "ʰΣ", "aʰΣ"):
        assert fast.encode(text).ids == slow(text)["input_ids"], text


def test_offsets_point_into_the_text_as_it_was_given(tmp_path):
    fast = moses_backend(flaubert(tmp_path))
    text = "« L'été », dit-il… à 5\u00a0%!"
    words = {text[begin:end] for begin, end in fast.encode(text, add_special_tokens=False).offsets}
    assert {"«", "»", "L", "'", ",", "%", "!", "é"} <= {part for word in words for part in (word, *word)}


# --- what is refused, and what differs ------------------------------------------------------------------------------


def test_merges_beyond_the_vocabulary_are_refused(tmp_path):
    slow = flaubert(tmp_path)
    left, right = next(iter(slow.bpe_ranks))
    del slow.encoder[left + right]
    with pytest.raises(UnsupportedError, match="pieces that its vocabulary does not have") as caught:
        moses_backend(slow)
    assert f"{left} + {right}" in str(caught.value)
    assert "Remedy" in str(caught.value)


def test_a_rebuilt_tokenizer_that_gives_other_ids_is_refused(tmp_path):
    slow = flaubert(tmp_path)
    fast = rebuilt(slow)
    fast.backend_tokenizer.normalizer = normalizers.NFC()
    with pytest.raises(UnsupportedError, match="FlaubertTokenizer runs Python code that cannot be carried") as caught:
        tokenizer_cases(fast, slow)
    assert "Remedy" in str(caught.value)


def test_pairs_cut_to_an_odd_length_are_the_known_difference(tmp_path):
    """transformers leaves the odd token with the first text in Python, with the second one in fast tokenizers."""
    slow = flaubert(tmp_path)
    fast = rebuilt(slow)
    options = {"truncation": "longest_first", "max_length": 12}
    pair = (GREETING, GREETING)
    ours, theirs = fast(*pair, **options)["input_ids"], slow(*pair, **options)["input_ids"]
    assert ours != theirs
    assert len(ours) == len(theirs) == 12
    even = {**options, "max_length": 11}
    assert fast(*pair, **even)["input_ids"] == slow(*pair, **even)["input_ids"]


def test_another_python_tokenizer_is_refused(copy):
    folder = copy()
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    with pytest.raises(UnsupportedError, match="CanineTokenizer, which runs Python code") as caught:
        open_source(folder)
    assert "Remedy" in str(caught.value)
