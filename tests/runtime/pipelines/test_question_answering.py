"""Question answering gives what the last Transformers release with this pipeline gave."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from palmtop.runtime.errors import RequestError
from palmtop.runtime.manifest import Artifact, Manifest, ModelSource, TensorSpec, TokenizerSpec
from palmtop.runtime.pipelines import make_pipeline
from palmtop.runtime.pipelines.question_answering import best_spans
from palmtop.runtime.results import Answer
from palmtop.runtime.session import Session
from palmtop.runtime.tokenizer import Tokenizer

from ...support.torch_session import BATCH, SEQUENCE, load_model, torch_pipeline
from .common import KINDS
from .data.qa.record import CASES, PASSAGE, TOKENS, made_up_logits

TASK = "question-answering"
DATA = Path(__file__).parent / "data" / "qa"
RECORDS = json.loads((DATA / "answers.json").read_text(encoding="utf-8"))["records"]


class MadeUpModel:
    """Gives the logits that the recorded answers were found in."""

    engine = "none"
    identity = None

    def run(self, feeds):
        start, end = made_up_logits(feeds["input_ids"])
        return {"start_logits": start, "end_logits": end}


def made_up_pipeline(kind):
    backend = tokenizers.Tokenizer.from_file(str(DATA / f"{kind}.json"))
    spec = TokenizerSpec(
        path=".",
        kind=kind,
        tokenizer_class="",
        max_length=128,
        truncation_side="right",
        padding_side="right",
        pad_to_multiple_of=None,
        special_tokens={},
        special_ids={name.removesuffix("_token"): backend.token_to_id(token) for name, token in TOKENS[kind].items()},
        inputs=("input_ids", "attention_mask"),
        input_pad={},
    )
    inputs = tuple(TensorSpec(name, "int64", (BATCH, SEQUENCE)) for name in spec.inputs)
    outputs = tuple(TensorSpec(name, "float32", (BATCH, SEQUENCE)) for name in ("start_logits", "end_logits"))
    artifact = Artifact("none", "none", "fp32", inputs, outputs)
    manifest = Manifest(ModelSource("", None, "0" * 64, ""), TASK, (artifact,), {}, tokenizer=spec)
    return make_pipeline(manifest, Tokenizer(backend, spec), Session(artifact, MadeUpModel()))


def as_lists(answers):
    return answers if isinstance(answers, list) else [answers]


@pytest.mark.parametrize("kind", sorted(TOKENS))
@pytest.mark.parametrize("case", range(len(CASES)))
def test_answers_scores_and_positions_are_those_recorded_from_transformers_4(kind, case):
    answer = made_up_pipeline(kind)
    checked = 0
    for record in RECORDS:
        if (record["kind"], record["case"]) != (kind, case):
            continue
        ours = as_lists(answer(**CASES[case], **record["options"]))
        theirs = [a for a in as_lists(record["answers"]) if a["score"] > 0]
        assert [(a.answer, a.start, a.end) for a in ours] == [(a["answer"], a["start"], a["end"]) for a in theirs]
        assert [a.score for a in ours] == pytest.approx([a["score"] for a in theirs], rel=1e-4, abs=1e-9)
        checked += 1
    assert checked == 8


def by_brute_force(folder, question, context, longest):
    """The best answer by trying every span of every window with the eager model: another way to the same definition."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = load_model(folder, TASK)
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=64, stride=32, return_overflowing_tokens=True
    )
    totals, places = {}, {}
    for window in range(len(encoded["input_ids"])):
        inputs = {
            name: torch.tensor([encoded[name][window]]) for name in tokenizer.model_input_names if name in encoded
        }
        with torch.no_grad():
            result = model(**inputs)
        usable = [
            index
            for index, part in enumerate(encoded.sequence_ids(window))
            if part == 1 or inputs["input_ids"][0, index] == tokenizer.cls_token_id
        ]
        starts = result.start_logits[0, usable].double().softmax(0)
        ends = result.end_logits[0, usable].double().softmax(0)
        spans = [
            (float(starts[i] * ends[j]), first, last)
            for i, first in enumerate(usable)
            for j, last in enumerate(usable)
            if first > 0 and last > 0 and 0 <= last - first < longest
        ]
        for score, first, last in sorted(spans, reverse=True)[:12]:
            words = encoded.token_to_word(window, first), encoded.token_to_word(window, last)
            start = encoded.word_to_chars(window, words[0], 1).start
            end = encoded.word_to_chars(window, words[1], 1).end
            text = context[start:end].lower()
            totals[text] = totals.get(text, 0.0) + score
            places.setdefault(text, (start, end))
    best = max(totals, key=totals.get)
    return (*places[best], totals[best])


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_answer_is_the_one_that_trying_all_spans_finds(checkpoint, kind):
    folder = checkpoint(kind, TASK)
    answer = torch_pipeline(folder, TASK)
    for context in (PASSAGE[:80], PASSAGE * 2):
        found = answer(question="Where does he live?", context=context)
        start, end, score = by_brute_force(folder, "Where does he live?", context, longest=15)
        assert (found.start, found.end) == (start, end)
        assert found.answer == context[start:end]
        assert found.score == pytest.approx(score, abs=1e-5)


def test_lists_of_pairs_keep_their_order_whatever_the_batch(checkpoint):
    answer = torch_pipeline(checkpoint("bert", TASK), TASK)
    items = [{"question": "Where?", "context": context} for context in (PASSAGE * 3, "Berlin", PASSAGE, "a b c")]
    alone = [answer(item) for item in items]
    for batch_size in (1, 4):
        together = answer(items, batch_size=batch_size)
        assert [a.answer for a in together] == [a.answer for a in alone]
        assert [a.score for a in together] == pytest.approx([a.score for a in alone], abs=1e-5)


def test_questions_share_a_context_or_have_one_each(checkpoint):
    answer = torch_pipeline(checkpoint("bert", TASK), TASK)
    shared = answer(question=["Who?", "Where?"], context=PASSAGE)
    assert shared == answer(question=["Who?", "Where?"], context=[PASSAGE, PASSAGE])
    assert len(shared) == 2


def test_top_k_gives_a_list_best_first_and_one_gives_an_answer(checkpoint):
    answer = torch_pipeline(checkpoint("bert", TASK), TASK)
    ranked = answer(question="Where?", context=PASSAGE, top_k=4)
    assert len(ranked) == 4
    assert ranked == sorted(ranked, key=lambda a: -a.score)
    assert answer(question="Where?", context=PASSAGE) == ranked[0] or isinstance(ranked[0], Answer)


def test_there_is_no_answer_only_when_no_window_has_one():
    class NoAnswerNearTheMark(MadeUpModel):
        """Sure that windows with an exclamation mark (id 5) hold no answer, and that all others do."""

        def run(self, feeds):
            logits = np.zeros(feeds["input_ids"].shape, np.float32)
            logits[:, 0] = [20.0 if 5 in row else -20.0 for row in feeds["input_ids"].tolist()]
            return {"start_logits": logits, "end_logits": logits}

    answer = made_up_pipeline("wordpiece")
    answer.session.runner = NoAnswerNearTheMark()
    for context, expected in (("!", 1.0), ("! " + "a " * 300, 0.0), ("a " * 300 + "!", 0.0)):
        found = answer(question="?", context=context, handle_impossible_answer=True, top_k=1000)
        (nothing,) = [a for a in found if a.answer == ""]
        assert nothing.score == pytest.approx(expected, abs=1e-6)


def test_a_long_question_leaves_less_room_but_is_answered(checkpoint):
    answer = torch_pipeline(checkpoint("bert", TASK), TASK)
    question = "where is the book " * 12
    assert answer(question=question, context="on the table").end <= len("on the table")
    found = answer(question=question, context=PASSAGE, top_k=400)
    assert max(a.end for a in found) > len(PASSAGE) * 0.8


def test_a_context_of_spaces_holds_no_answer(checkpoint):
    answer = torch_pipeline(checkpoint("bert", TASK), TASK)
    assert answer(question="Where?", context="   ") == Answer("", 0.0, 0, 0)
    assert answer(question="Where?", context="   ", top_k=2) == []


def test_what_has_no_probability_is_no_answer(checkpoint):
    ranked = made_up_pipeline("wordpiece")(question="?", context="a", top_k=5)
    assert [(a.answer, a.start, a.end) for a in ranked] == [("a", 0, 1)]


def test_spans_are_the_most_probable_ones_that_are_allowed():
    start, end = np.array([0.0, 0.7, 0.2, 0.1]), np.array([0.0, 0.1, 0.2, 0.7])
    allowed = np.array([True, True, True, True])
    assert best_spans(start, end, allowed, 2, longest=3) == [(1, 3, pytest.approx(0.49)), (1, 2, pytest.approx(0.14))]
    assert best_spans(start, end, allowed, 1, longest=2) == [(1, 2, pytest.approx(0.14))]
    assert best_spans(start, end, np.array([True, False, True, True]), 1, longest=3) == []


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({}, "both a question and a context"),
        ({"question": "Where?"}, "both a question and a context"),
        ({"question": "", "context": "here"}, "question must be a text that is not empty"),
        ({"question": "Where?", "context": ""}, "context must be a text that is not empty"),
        ({"question": "Where?", "context": None}, "both"),
        ({"question": 3, "context": "here"}, "Expected a question"),
        ({"question": ["a", "b"], "context": ["c"]}, "2 questions and 1 contexts"),
        ({"inputs": "Where?"}, "pair"),
        ({"inputs": {"question": "Where?"}}, "pair"),
        ({"inputs": [{"question": "Where?", "context": 3}]}, "Input 0: the context"),
        ({"question": "Where?", "context": "here", "top_k": 0}, "top_k"),
        ({"question": "Where?", "context": "here", "max_answer_len": 0}, "max_answer_len"),
        ({"question": "Where " * 80, "context": "here there"}, "Input 0: the question leaves no room"),
        ({"question": "Where?", "context": "here " * 90, "doc_stride": 60}, "stride"),
        ({"question": "Where?", "context": "here", "doc_stride": -1}, "doc_stride"),
        ({"question": "Where?", "context": "here", "doc_stride": "8"}, "doc_stride"),
    ],
)
def test_what_cannot_be_answered_is_refused(checkpoint, call, reason):
    with pytest.raises(RequestError, match=reason):
        torch_pipeline(checkpoint("bert", TASK), TASK)(**call)
