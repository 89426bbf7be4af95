"""A bundle that generates must say what the reference says; another token is excused only where that was a toss-up."""

import dataclasses
import json

import numpy as np
import pytest
from palmtop.runtime.assembly import signature
from palmtop.runtime.errors import DamagedError
from palmtop.runtime.generation.decoder import Decoder
from palmtop.runtime.generation.session import GenerationSession
from palmtop.runtime.golden import Continuation, Expected, GoldenCase, read_golden, write_golden
from palmtop.runtime.parity import Noise
from palmtop.runtime.verify import golden_cases, verify_artifact

from ...support.toy_decoder import logits_of, toy_session

PROMPT = [3, 1, 4]


def greedy(count, penalty=None):
    """What a model says that computes `logits_of`, and its margins."""
    ids, margins = list(PROMPT), []
    for _ in range(count):
        scores = logits_of(np.array([ids]))[0]
        if penalty is not None:
            seen = np.unique(ids)
            scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
        second, first = np.sort(scores)[-2:]
        margins.append(float(first - second))
        ids.append(int(scores.argmax()))
    return Continuation(tuple(ids[len(PROMPT) :]), tuple(margins))


def golden(generated):
    logits = np.stack([logits_of(np.array([PROMPT[: place + 1]])) for place in range(3)], axis=1)
    encoding = {"input_ids": np.array(PROMPT)}
    options = {"max_length": 10, "truncation": None}
    return GoldenCase(
        "prompt",
        encoding,
        {"logits": Expected.of(logits, None)},
        text="x",
        options=options,
        offsets=[[0, 1]] * 3,
        generated=generated,
    )


def verified(generated, form="growing", **defaults):
    step = toy_session(form)
    session = GenerationSession(signature([step.artifact]), Decoder(step, 64), defaults=defaults)
    return verify_artifact(
        session.artifact,
        lambda: session,
        golden_cases([golden(generated)]),
        task="text-generation",
        tokenizer=None,
        noise={"logits": Noise(1e-4, 1e-4)},
    )


@pytest.mark.parametrize(("form", "count"), [("growing", 20), ("fixed", 7), ("states", 7)])
def test_the_same_text_passes(form, count):
    report = verified(greedy(count), form)
    assert report.status == "passed", report.problems
    total = len(PROMPT) + count  # the positions of the prompt are decisions too
    assert (report.agreement.same, report.agreement.total, report.agreement.excused) == (total, total, 0)


def test_another_token_fails_where_the_reference_was_sure():
    said = greedy(12)
    wrong = list(said.ids)
    wrong[5] = (wrong[5] + 1) % 12
    report = verified(dataclasses.replace(said, ids=tuple(wrong)))
    assert report.status == "failed"
    assert "decision" in " ".join(report.problems)


def test_another_token_is_excused_and_counted_where_the_reference_was_not():
    said = greedy(12)
    wrong, margins = list(said.ids), list(said.margins)
    wrong[-1], margins[-1] = (wrong[-1] + 1) % 12, 1e-7
    report = verified(Continuation(tuple(wrong), tuple(margins)))
    assert report.status == "passed"
    assert report.agreement.excused == 1
    assert report.to_json()["agreement"]["same"] == len(PROMPT) + 11


def test_the_settings_of_the_checkpoint_are_part_of_it():
    said = greedy(12, penalty=3.0)
    assert said.ids != greedy(12).ids
    assert verified(said, repetition_penalty=3.0).status == "passed"
    assert verified(said).status == "failed"


def test_what_is_said_is_written_and_read(tmp_path):
    case = golden(greedy(4))
    write_golden(tmp_path / "golden.jsonl", [case])
    (read,) = read_golden(tmp_path / "golden.jsonl")
    assert read.generated == case.generated
    record = json.loads((tmp_path / "golden.jsonl").read_text())
    assert record["generated"]["ids"] == list(case.generated.ids)
    record["generated"]["margins"].pop()
    (tmp_path / "golden.jsonl").write_text(json.dumps(record))
    with pytest.raises(DamagedError, match="margins"):
        read_golden(tmp_path / "golden.jsonl")
