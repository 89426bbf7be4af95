"""`tokenizer_spec.json` says all that a reader must know: one written from its page gives every golden vector."""

from __future__ import annotations

import json
import random
import re

import jsonschema
import pytest
from palmtop.export.texts import PAIRS, PROBES, SENTENCES
from palmtop.export.tokenization import classes
from palmtop.export.tokenization.golden import tokenizer_cases
from palmtop.export.tokenization.patterns import GPT2, KNOWN, portable
from palmtop.export.tokenization.spec import specification
from palmtop.runtime.errors import DamagedError, UnsupportedError
from palmtop.runtime.tokenizer_spec import check_tokenizer_spec, read_tokenizer_spec, tokenizer_spec_schema
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ..support.spec_check import differences
from ..support.spec_reader import SpecTokenizer, Unreadable
from ..support.vocabularies import KINDS

# Characters and pieces that are treated alone somewhere, in every order.
PIECES = [
    *"abeEé \t\n\r.,!?'’-_ﬁﾃªº²½٣…ŉßİΣſ한中🙂ऀकि้กา1",
    *("e\u0301", "\u1112\u1161\u11ab", "\u00a0", "\u2028", "\u200b", "\u00ad", "\ufeff", "\x00", "\x07", "\x85"),
    "\u0344",
    *("\u0323", "\u0301", "👩‍👩‍👧", "a🏽", "\u0600x", "<s>", "</s>", "[SEP]", "<mask>", "<unk>", "the quick brown "),
    "<left>",
    *(" <right> ", "Café", "Caféx", "  ", "'s", "'LL", "▁", "##a", "<0x41>", "Ġ", "\ue000"),
]


def made(backend: Tokenizer) -> dict:
    data = json.loads(backend.to_str())
    data["truncation"] = data["padding"] = None
    spec = specification(
        data,
        inputs=("input_ids",),
        max_length=64,
        sides=("right", "right"),
        pad={"id": 0, "type_id": 0, "multiple_of": None},
        cleanup=False,
    )
    return json.loads(json.dumps(spec))


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    """A tokenizer of one kind, and its specification."""
    backend = KINDS[request.param]()
    backend.no_padding()
    backend.no_truncation()
    return backend, made(backend)


def test_the_plain_reader_gives_all_golden_vectors(kind):
    backend, spec = kind
    pad = next((token for token in spec["added_tokens"] if token["special"]), {"id": 0, "content": None})
    spec = {**spec, "padding": {**spec["padding"], "id": pad["id"]}}
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad["content"], clean_up_tokenization_spaces=False
    )
    cases = tokenizer_cases(theirs)
    assert len(cases) > 60
    reader = SpecTokenizer(spec)
    sides = {}
    for side in ("left", "right"):
        sides[side] = SpecTokenizer({**spec, "padding": {**spec["padding"], "side": side}})
    wrong = []
    for case in cases:
        wrong += differences(sides[case.padding["side"]] if case.padding else reader, [case])
    assert wrong == []


def test_the_plain_reader_reads_any_text_alike(kind):
    backend, spec = kind
    reader, rng = SpecTokenizer(spec), random.Random(1)
    for _ in range(150):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 10)))
        pair = None if rng.random() < 0.7 else rng.choice(SENTENCES)
        expected, found = backend.encode(text, pair), reader.encode(text, pair)
        assert found["ids"] == expected.ids, repr(text)
        assert found["offsets"] == expected.offsets, repr(text)
        assert found["type_ids"] == expected.type_ids, repr(text)
        assert found["special_tokens_mask"] == expected.special_tokens_mask, repr(text)
        for skip in (True, False):
            decoded = backend.decode(expected.ids, skip_special_tokens=skip)
            assert reader.decode(expected.ids, skip) == decoded, repr(text)


def test_every_specification_is_valid(kind):
    _, spec = kind
    jsonschema.Draft202012Validator.check_schema(tokenizer_spec_schema())
    jsonschema.validate(spec, tokenizer_spec_schema())
    assert check_tokenizer_spec(spec) is spec


# --- what a reader refuses ------------------------------------------------------------------------------------------


def change(spec: dict, key: str, value) -> dict:
    return {**spec, key: value}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("normalizer", [{"type": "rot13"}]),
        ("pre_tokenizer", [{"type": "scripts"}]),
        ("decoder", [{"type": "ctc"}]),
        ("model", {"type": "neural"}),
        ("spec_version", 2),
        ("format", "other"),
    ],
)
def test_an_unknown_step_or_a_newer_version_is_refused(key, value):
    spec = made(KINDS["bert"]())
    with pytest.raises(DamagedError):
        check_tokenizer_spec(change(spec, key, value))
    with pytest.raises(Unreadable):
        SpecTokenizer(change(spec, key, value))


def test_a_newer_version_is_named(tmp_path):
    path = tmp_path / "tokenizer_spec.json"
    path.write_text(json.dumps(change(made(KINDS["bert"]()), "spec_version", 7)))
    with pytest.raises(DamagedError, match="of version 7; this palmtop reads up to 1"):
        read_tokenizer_spec(path)


@pytest.mark.parametrize("content", [None, "no json", "[]", "{}", '{"format": "palmtop-tokenizer", "spec_version": 1}'])
def test_what_is_no_specification_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer_spec.json").write_text(content)
    with pytest.raises(DamagedError, match="tokenizer_spec"):
        read_tokenizer_spec(tmp_path / "tokenizer_spec.json")


# --- what an export refuses -----------------------------------------------------------------------------------------


def small(**steps) -> Tokenizer:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    for name, step in steps.items():
        setattr(backend, name, step)
    return backend


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        ({"pre_tokenizer": pre_tokenizers.UnicodeScripts()}, "'UnicodeScripts'"),
        ({"normalizer": normalizers.ByteLevel()}, "'ByteLevel'"),
        ({"decoder": decoders.CTC()}, "'CTC'"),
        ({"pre_tokenizer": pre_tokenizers.Split(Regex(r"(?>a|ab)c"), "isolated")}, r"\(\?>"),
        ({"pre_tokenizer": pre_tokenizers.Split(Regex(r"a++b"), "isolated")}, "possessive"),
        ({"pre_tokenizer": pre_tokenizers.Split(Regex(r"(a)\1"), "isolated")}, r"\\1"),
        ({"pre_tokenizer": pre_tokenizers.Split(Regex(r"\bword"), "isolated")}, r"\\b"),
        ({"pre_tokenizer": pre_tokenizers.Split(Regex(r"(?i:strasse)"), "isolated")}, "without regard to case"),
        ({"pre_tokenizer": pre_tokenizers.Split(Regex(r"[a-z&&[^e]]"), "isolated")}, "class in a class"),
        ({"pre_tokenizer": pre_tokenizers.Split(Regex(r"(?<=a+)b"), "isolated")}, "all readers know"),
        ({"pre_tokenizer": pre_tokenizers.Split(Regex(r"a\Kb"), "isolated")}, r"\\K"),
        ({"normalizer": normalizers.Replace(Regex(r"a\Kb|c"), "")}, r"\\K in an alternative"),
    ],
)
def test_a_step_without_a_faithful_form_is_refused_with_its_name_and_a_remedy(steps, named):
    with pytest.raises(UnsupportedError, match=named) as caught:
        made(small(**steps))
    assert "Remedy" in str(caught.value)


def test_dropout_and_missing_unknown_tokens_are_refused():
    with pytest.raises(UnsupportedError, match="at random"):
        made(Tokenizer(models.BPE({"a": 0}, [], dropout=0.1)))
    with pytest.raises(UnsupportedError, match="is not in its vocabulary"):
        made(Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]")))


def test_special_tokens_put_around_twice_are_refused():
    twice = processors.TemplateProcessing(single="a $A", pair="a $A $B", special_tokens=[("a", 1)])
    with pytest.raises(UnsupportedError, match="twice"):
        made(small(post_processor=processors.Sequence([twice, twice])))


# --- patterns and sets of characters --------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", KNOWN, ids=KNOWN.values())
def test_a_known_pattern_splits_alike_in_its_portable_form(pattern):
    rng = random.Random(2)
    theirs = pre_tokenizers.Split(Regex(pattern), "isolated")
    ours = re.compile(portable(pattern).pattern)
    texts = ["".join(rng.choice(PIECES) for _ in range(rng.randint(0, 12))) for _ in range(500)]
    for text in [*SENTENCES, *(text for _, text in PROBES), *texts]:
        assert [match[0] for match in ours.finditer(text)] == [part for part, _ in theirs.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    "pattern",
    [
        r"^a|b$",
        r"[^\S\n]+",
        r"x\Ky",
        r"(?i:[k-s])x{2,}?",
        r"\x{1F642}|\u0301|\t",
        r"a.c",
        r"[\]\-^a]",
        r"(?<![\p{L}])\d",
    ],
)
def test_other_patterns_match_alike_in_their_portable_form(pattern):
    found = portable(pattern)
    theirs = normalizers.Replace(Regex(pattern), "#")
    for text in ("a b\nba\nb", "a\nc abc", "Kxx ſxxx kx", "🙂\u0301\t", "]-^a", "1 a1 é2", "xyxyy", " \t\u3000\n "):
        ours = re.sub(found.pattern, (lambda m: m[1] + "#") if found.keep else "#", text)
        assert ours == theirs.normalize_str(text), text


def test_patterns_are_resolved_by_name_and_as_they_are(kind):
    backend, spec = kind
    for step in spec["pre_tokenizer"]:
        match = step.get("match", {})
        if match.get("source") in KNOWN:
            assert match["name"] == KNOWN[match["source"]]
            assert "\\p" not in match["regex"]
    if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        assert spec["pre_tokenizer"][-2]["match"]["source"] == GPT2


@pytest.mark.parametrize("name", [*classes.PROBES, *classes.USUAL])
def test_stored_sets_of_characters_are_those_of_the_library(name):
    assert classes.get(name) == (classes.PROBES[name]() if name in classes.PROBES else classes.onig(name))


def test_pairs_are_in_the_vectors():
    """The probes that this project promises are there."""
    names = {name for name, _ in PROBES}
    assert {"hangul decomposed", "half-width kana", "emoji with joiners", "line ends", "private use", "empty"} <= names
    assert len(PAIRS) >= 4
