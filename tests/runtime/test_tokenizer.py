"""The bundle's tokenizer gives what Transformers gives: ids, masks, offsets, windows, padding."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from palmtop.runtime.errors import DamagedError, RequestError
from palmtop.runtime.manifest import Dim
from palmtop.runtime.tokenizer import Tokenizer

from ..support.torch_session import tokenizer_spec

TASK = "feature-extraction"
KINDS = ("bert", "roberta", "xlm-roberta", "deberta-v2", "modernbert", "mpnet", "albert")
TEXTS = [
    "Réveille-moi à sept heures, s'il te plaît.",
    "Wolfgang lives in Berlin and works for Hugging Face in New York City.",
    "내일 아침 今天天气怎么样 🙂 👩‍👩‍👧",
    "tab\tnewline\n zero\u200bwidth \x07bell nul\x00 bom\ufeff e\u0301",
    "[MASK] <mask> [SEP] </s> are written in the text",
    "unknownlylongwordwithoutanyspaces" * 5,
    "",
    "   ",
    "a",
]
PAIRS = list(reversed(TEXTS))


@pytest.fixture(params=KINDS)
def both(request, checkpoint):
    """Our tokenizer and Transformers' own, of one checkpoint."""
    return tokenizers_of(checkpoint(request.param, TASK))


def tokenizers_of(folder, **changes):
    theirs = transformers.AutoTokenizer.from_pretrained(folder, **changes)
    spec = dataclasses.replace(tokenizer_spec(folder), **changes)
    return Tokenizer.open(folder, spec), theirs


def assert_same(ours, theirs) -> None:
    """An `Encoded` equals a `BatchEncoding` made with all its extras."""
    for name, array in ours.inputs.items():
        assert array.dtype == np.int64
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    np.testing.assert_array_equal(ours.offsets, theirs["offset_mapping"])
    np.testing.assert_array_equal(ours.special_tokens_mask, theirs["special_tokens_mask"])
    rows = range(len(theirs["input_ids"]))
    assert ours.word_ids == [theirs.word_ids(row) for row in rows]
    assert ours.sequence_ids == [theirs.sequence_ids(row) for row in rows]
    np.testing.assert_array_equal(ours.samples, theirs.get("overflow_to_sample_mapping", list(rows)))


def reference(tokenizer, texts, pairs=None, **options):
    return tokenizer(
        texts,
        pairs,
        **{"padding": True, "return_offsets_mapping": True, "return_special_tokens_mask": True, **options},
    )


def test_a_batch_of_texts(both):
    ours, theirs = both
    assert_same(ours(TEXTS), reference(theirs, TEXTS, truncation=True))


def test_a_batch_of_pairs(both):
    ours, theirs = both
    assert_same(ours(TEXTS, PAIRS), reference(theirs, TEXTS, PAIRS, truncation=True))


def test_one_text_is_a_batch_of_one(both):
    ours, theirs = both
    for text in TEXTS:
        assert_same(ours(text), reference(theirs, [text], truncation=True))


def test_only_the_inputs_of_the_model_are_made(both):
    ours, theirs = both
    assert set(ours("a").inputs) == set(theirs.model_input_names)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("length", [8, 12, 30])
@pytest.mark.parametrize("truncation", ["longest_first", "only_first", "only_second"])
def test_truncation_of_pairs(checkpoint, truncation, length, side):
    ours, theirs = tokenizers_of(checkpoint("bert", TASK), truncation_side=side)
    long, short = TEXTS[1], "Où"
    first, second = (short, long) if truncation == "only_second" else (long, short)
    expected = reference(theirs, [first], [second], truncation=truncation, max_length=length)
    found = ours(first, second, truncation=truncation, max_length=length)
    assert_same(found, expected)
    assert found.inputs["input_ids"].shape[1] <= length


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [4, 5, 7])
def test_special_tokens_are_never_cut(checkpoint, kind, length):
    ours, _ = tokenizers_of(checkpoint(kind, TASK))
    for pair in (None, TEXTS[0]):
        whole = ours(TEXTS[1], pair, truncation=None)
        if length <= int(whole.special_tokens_mask.sum()):
            continue
        cut = ours(TEXTS[1], pair, max_length=length)
        special = cut.inputs["input_ids"][cut.special_tokens_mask == 1]
        assert cut.inputs["input_ids"].shape == (1, length)
        np.testing.assert_array_equal(special, whole.inputs["input_ids"][whole.special_tokens_mask == 1])


@pytest.mark.parametrize("stride", [0, 3])
def test_windows_of_long_texts(both, stride):
    ours, theirs = both
    options = {"max_length": 12, "stride": stride}
    found = ours(TEXTS, overflow=True, **options)
    assert_same(found, reference(theirs, TEXTS, truncation=True, return_overflowing_tokens=True, **options))
    assert len(found.samples) > len(TEXTS)


def test_windows_of_pairs_keep_the_question_whole(both):
    ours, theirs = both
    options = {"truncation": "only_second", "max_length": 24, "stride": 4}
    question, contexts = "Où?", [TEXTS[0], TEXTS[1], "a"]
    found = ours([question] * 3, contexts, overflow=True, **options)
    assert_same(found, reference(theirs, [question] * 3, contexts, return_overflowing_tokens=True, **options))


def test_a_batch_of_no_texts_has_a_length_all_the_same(checkpoint):
    ours, _ = tokenizers_of(checkpoint("bert", TASK))
    made = ours.batch([], Dim(symbol="s", min=6, max=20))
    assert {name: array.shape for name, array in made.items()} == dict.fromkeys(ours.spec.inputs, (0, 6))


def test_a_tokenizer_that_makes_one_input_pads_it(checkpoint):
    ours, theirs = tokenizers_of(checkpoint("bert", TASK))
    ours = Tokenizer.open(ours.folder, dataclasses.replace(ours.spec, inputs=("input_ids",)))
    found = ours.batch(ours.encode(TEXTS))
    np.testing.assert_array_equal(found["input_ids"], theirs(TEXTS, padding=True, truncation=True)["input_ids"])
    assert list(found) == ["input_ids"]


def test_a_text_may_be_a_string_of_a_class_of_its_own(both):
    class Title(str):
        pass

    ours, _ = both
    assert [window.encoding.ids for window in ours.encode([Title(TEXTS[1]), TEXTS[0]])] == [
        window.encoding.ids for window in ours.encode([TEXTS[1], TEXTS[0]])
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_the_side_the_tokenizer_says(checkpoint, side):
    ours, theirs = tokenizers_of(checkpoint("bert", TASK), padding_side=side)
    assert_same(ours(TEXTS, PAIRS), reference(theirs, TEXTS, PAIRS, truncation=True))


@pytest.mark.parametrize(
    ("axis", "longest", "expected"),
    [
        (None, 5, 5),
        (16, 5, 16),
        (Dim(size=16), 16, 16),
        (Dim(symbol="s", values=(8, 32)), 5, 8),
        (Dim(symbol="s", values=(8, 32)), 9, 32),
        (Dim(symbol="s", min=6, max=20), 5, 6),
        (Dim(symbol="s", min=6, max=20), 19, 19),
    ],
)
def test_padding_goes_to_the_next_length_an_axis_takes(checkpoint, axis, longest, expected):
    ours, _ = tokenizers_of(checkpoint("bert", TASK))
    assert ours.padded_length(longest, axis) == expected


def test_padding_to_multiples_gives_way_to_the_longest_an_axis_takes(checkpoint):
    ours, _ = tokenizers_of(checkpoint("bert", TASK), pad_to_multiple_of=8)
    assert ours.padded_length(5, None) == 8
    assert ours.padded_length(19, Dim(symbol="s", min=1, max=20)) == 20 - 1
    assert ours.padded_length(9, Dim(symbol="s", min=1, max=20)) == 16


def test_a_text_longer_than_the_axis_is_refused_with_the_numbers(checkpoint):
    ours, _ = tokenizers_of(checkpoint("bert", TASK))
    with pytest.raises(RequestError, match="has 9 tokens; the model takes 8"):
        ours.padded_length(9, Dim(size=8))


def test_decoding(both):
    ours, theirs = both
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_words_split_beforehand(checkpoint):
    ours, theirs = tokenizers_of(checkpoint("bert", TASK))
    words = ["Wolfgang", "", "lives", "in München", "🙂"]
    assert_same(ours([words], words=True), reference(theirs, [words], is_split_into_words=True))


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=st.text(max_size=60), pair=st.text(max_size=30), length=st.integers(5, 20))
def test_any_text_is_tokenized_as_transformers_does(shared, kind, text, pair, length):
    ours, theirs = shared(kind)
    assert_same(ours(text), reference(theirs, [text], truncation=True))
    expected = reference(theirs, [text], [pair], truncation=True, max_length=length)
    assert_same(ours(text, pair, max_length=length), expected)
    for begin, end in ours(text).offsets[0]:
        assert 0 <= begin <= end <= len(text)


@pytest.fixture(scope="session")
def shared(checkpoint):
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = tokenizers_of(checkpoint(kind, TASK))
        return made[kind]

    return get


class Hesitant:
    """A backend that lets other threads in between its setting and its use."""

    def __init__(self, backend):
        self.backend = backend

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def enable_truncation(self, **settings):
        self.backend.enable_truncation(**settings)
        time.sleep(0.001)


def test_threads_with_different_lengths_do_not_disturb_each_other(checkpoint):
    ours, _ = tokenizers_of(checkpoint("bert", TASK))
    expected = {length: ours(TEXTS[1], max_length=length).inputs["input_ids"].tolist() for length in (5, 9, 40)}
    shared = Tokenizer(Hesitant(ours._backend), ours.spec)
    with ThreadPoolExecutor(4) as pool:
        jobs = [(length, pool.submit(shared, TEXTS[1], max_length=length)) for _ in range(10) for length in expected]
        assert all(job.result().inputs["input_ids"].tolist() == expected[length] for length, job in jobs)


@pytest.mark.parametrize("bad", [None, 3, b"bytes", ["words"], "half \ud83d of a pair"])
def test_what_is_not_text_is_refused(checkpoint, bad):
    ours, _ = tokenizers_of(checkpoint("bert", TASK))
    with pytest.raises(RequestError):
        ours.encode([bad])
    with pytest.raises(RequestError):
        ours.encode(["fine"], [bad])


@pytest.mark.parametrize(
    ("texts", "options", "reason"),
    [
        (("a b c d e",), {"max_length": 2}, "leaves no room for text beside 2 special tokens"),
        (("a b", "c d"), {"max_length": 3}, "leaves no room for text beside 3 special tokens"),
        (("a b c d e f g h",), {"max_length": 6, "stride": 4}, "has room for 4 beside"),
        (("a b c d e f g h",), {"max_length": 6, "stride": -1}, "stride of -1"),
        (("a b c d", "e f g h i j"), {"max_length": 10, "stride": 3, "truncation": "only_second"}, "has room for 3"),
        (("a b c d e f g h", "i"), {"max_length": 6, "truncation": "only_second"}, "cannot be cut to 6 tokens"),
    ],
)
def test_lengths_without_room_for_text_are_refused(checkpoint, capfd, texts, options, reason):
    ours, _ = tokenizers_of(checkpoint("bert", TASK))
    with pytest.raises(RequestError, match=reason):
        ours(*texts, overflow=True, **options)
    assert "panicked" not in capfd.readouterr().err


def test_a_huge_text_is_cut_like_any_other(checkpoint):
    ours, _ = tokenizers_of(checkpoint("bert", TASK))
    assert ours("the quick brown fox " * 20_000).inputs["input_ids"].shape == (1, 64)


@pytest.mark.parametrize("content", [None, "not json", '{"version": "1.0"}'])
def test_a_missing_or_damaged_vocabulary_is_said(checkpoint, tmp_path, content):
    spec = tokenizer_spec(checkpoint("bert", TASK))
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DamagedError, match=r"tokenizer\.json"):
        Tokenizer.open(tmp_path, spec)


def test_inputs_that_this_version_does_not_know_are_said(checkpoint):
    folder = checkpoint("bert", TASK)
    spec = dataclasses.replace(tokenizer_spec(folder), inputs=("input_ids", "bbox"))
    with pytest.raises(DamagedError, match="bbox"):
        Tokenizer.open(folder, spec)
