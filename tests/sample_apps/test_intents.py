"""The sample checkpoint: a Hugging Face folder like any other, small, right often enough, and honestly held out."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "sample_apps" / "checkpoints" / "intents"


@pytest.fixture(scope="module", autouse=True)
def modules():
    """Let the folder's scripts import each other, as they do when run in place; leave nothing behind."""
    names = ("sentences", "noise", "overlap", "wordpiece", "report", "train")
    before = {name: sys.modules.pop(name, None) for name in names}
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def script(name: str) -> ModuleType:
    """A script of the folder, as a module."""
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def checkpoint() -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(FOLDER, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def answers(checkpoint: tuple[Any, Any]) -> list[Any]:
    return script("report").evaluate(*checkpoint, "evaluation")


@pytest.fixture(scope="module")
def held_out() -> list[Any]:
    return script("report").read_split("evaluation")


def test_the_folder_is_under_ten_megabytes():
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert size < 10_000_000


def test_transformers_reads_it_with_the_concrete_tokenizer_class(checkpoint):
    model, tokenizer = checkpoint
    assert type(model).__name__ == "BertForSequenceClassification"
    assert type(tokenizer).__name__ in ("BertTokenizer", "BertTokenizerFast")
    assert model.config.label2id == {label: number for number, label in model.config.id2label.items()}


def test_transformers_tokenizes_as_the_tokenizer_file_says(checkpoint, held_out):
    from tokenizers import Tokenizer

    _, tokenizer = checkpoint
    plain = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    assert all(tokenizer(row.text)["input_ids"] == plain.encode(row.text).ids for row in held_out)


@pytest.mark.parametrize(
    ("text", "same"),
    [("Réveille-moi À L'ÉCOLE", "réveille-moi à l'école"), ("WEATHER in Séoul", "weather in séoul")],
)
def test_case_is_folded_and_accents_are_kept(checkpoint, text, same):
    _, tokenizer = checkpoint
    assert tokenizer(text)["input_ids"] == tokenizer(same)["input_ids"]
    without = script("noise").strip_accents(same)
    assert tokenizer(without)["input_ids"] != tokenizer(same)["input_ids"]


def test_ordinary_korean_and_french_have_no_unknown_piece(checkpoint, held_out):
    _, tokenizer = checkpoint
    texts = [row.text for row in held_out] + [
        "헬싱키에서 쓰촨식 훠궈를 먹었다",
        "Où êtes-vous, œuf de Noël, ça y est, aiguë",
    ]
    assert all(tokenizer.unk_token_id not in tokenizer(text)["input_ids"] for text in texts)


def test_it_is_right_nine_times_in_ten_on_held_out_sentences(answers):
    assert script("report").accuracy(answers) >= 0.90


@pytest.mark.parametrize("language", ["en", "fr", "ko"])
def test_no_language_is_left_behind(answers, language):
    report = script("report")
    assert report.accuracy(report.by(answers, "language")[language]) >= 0.85


def test_out_of_scope_catches_most_of_what_it_should_and_little_else(answers):
    outside = [answer for answer in answers if answer.row.label == "out_of_scope"]
    inside = [answer for answer in answers if answer.row.label != "out_of_scope"]
    assert sum(answer.right for answer in outside) / len(outside) >= 0.80
    assert sum(answer.predicted == "out_of_scope" for answer in inside) / len(inside) <= 0.05


def test_the_card_states_the_accuracy_that_is_measured(answers):
    # One answer may fall the other way on another processor.
    stated = float((FOLDER / "README.md").read_text(encoding="utf-8").split("jsonl`: **")[1].split(" %")[0])
    assert stated == pytest.approx(100 * script("report").accuracy(answers), abs=0.4)


def test_every_intent_has_forty_held_out_sentences_over_three_languages(held_out):
    cells = Counter((row.label, row.language) for row in held_out)
    assert len(cells) == 13 * 3
    assert min(cells.values()) >= 14
    assert len({(row.text, row.language) for row in held_out}) == len(held_out)


def test_no_template_can_write_a_held_out_sentence(held_out):
    overlap = script("overlap")
    found = {row.text: overlap.offending_template(row.text, row.language, wild=False) for row in held_out}
    assert {text: template for text, template in found.items() if template} == {}


def test_no_held_out_sentence_is_a_template_with_another_filling(held_out):
    overlap = script("overlap")
    found = {row.text: overlap.offending_template(row.text, row.language, wild=True) for row in held_out}
    assert {text: template for text, template in found.items() if template} == {}


def test_the_overlap_check_recognises_what_the_templates_write():
    """Guards the two tests above: sentences sampled from the templates must be recognised as such."""
    import random

    overlap, sentences = script("overlap"), script("sentences")
    rng = random.Random(7)
    for language in sentences.LANGUAGES:
        for templates in sentences.load(language).intents.values():
            for template in rng.sample(templates, 8):
                text = sentences.sample(sentences.load(language), template, rng)
                assert overlap.offending_template(text, language, wild=False), (language, text)


def test_no_held_out_sentence_is_near_a_training_sentence(held_out):
    overlap, train = script("overlap"), script("train")
    wanted: dict[str, list[tuple[str, frozenset[str]]]] = {language: [] for language in ("en", "fr", "ko")}
    for row in held_out:
        wanted[row.language].append((row.text, overlap.trigrams(row.text, row.language)))
    postings = {
        language: {
            gram: [n for n, (_, grams) in enumerate(rows) if gram in grams] for _, known in rows for gram in known
        }
        for language, rows in wanted.items()
    }
    near = set()
    for row in train.training_rows(per_cell=600):
        grams = overlap.trigrams(row.text, row.language)
        shared = Counter(number for gram in grams for number in postings[row.language].get(gram, ()))
        for number, count in shared.items():
            text, other = wanted[row.language][number]
            if count / (len(grams) + len(other) - count) >= overlap.NEAR_DUPLICATE:
                near.add((text, row.text))
    assert near == set()
