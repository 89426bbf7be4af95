"""What a model is calibrated with, and which of the user's inputs it is judged on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from palmtop.export import export_checkpoint
from palmtop.export.held_out import hold_back
from palmtop.export.methods import capture_subject
from palmtop.export.quantization import observe, single_rows
from palmtop.export.source import open_source
from palmtop.export.subject import checkpoint_subject
from palmtop.quantize.calibrate import calibrate
from palmtop.quantize.sites import find_sites
from palmtop.runtime.bundle import Bundle
from palmtop.runtime.errors import RequestError
from palmtop.runtime.verify import verify_bundle
from safetensors.torch import load_file, save_file

from .quantizing import CONFIG, TASKS


def calibration(checkpoint, task, path):
    """What a file gives to calibrate a model of a task with."""
    return checkpoint_subject(open_source(checkpoint("bert", task, config=CONFIG)), None, None).calibration(path)


@pytest.mark.parametrize(
    ("task", "name", "content", "said"),
    [
        ("text-classification", "texts.txt", "\n  \n", "holds no text"),
        ("text-classification", "texts.txt", None, "cannot be read"),
        ("text-classification", "photo.jpg", b"\xff\xd8\xff\xe0", "cannot be read"),
        ("text-classification", "texts.jsonl", '{"image": "cat.png"}\n', "line 1: expected an object with a text"),
        ("text-classification", "texts.jsonl", "play\n", "line 1, is not JSON"),
        (
            "question-answering",
            "texts.txt",
            "Who wrote it?\n",
            "question-answering needs JSON lines with a text and a t",
        ),
        (
            "multiple-choice",
            "texts.txt",
            "It rained.\n",
            "multiple-choice needs JSON lines with a text and a text_pair",
        ),
    ],
)
def test_calibration_files_that_are_not_what_the_task_needs(checkpoint, tmp_path, task, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError, match=said):
        calibration(checkpoint, task, path)


def test_a_calibration_file_without_texts_is_a_wrong_request(classifier, palmtop, tmp_path):
    (tmp_path / "texts.txt").write_text("\n")
    asked = ("--to", "onnx", "--quantize", "int8", "--calibrate", tmp_path / "texts.txt")
    ran = palmtop("export", classifier, "-o", tmp_path / "b", *asked)
    assert ran.code == 2
    assert "holds no text" in ran.err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("task", "rank"), [("text-classification", 2), ("question-answering", 2), ("multiple-choice", 3)]
)
def test_calibration_files_of_pairs(checkpoint, tmp_path, task, rank):
    line = json.dumps({"text": "Who wrote it?", "text_pair": "It was written in Lyon."})
    (tmp_path / "texts.jsonl").write_text(f"{line}\n{line}\n")
    feeds = calibration(checkpoint, task, tmp_path / "texts.jsonl")
    assert [feed["input_ids"].ndim for feed in feeds] == [rank, rank]


@pytest.mark.parametrize("task", TASKS)
def test_palmtops_own_texts_fit_every_task(checkpoint, task):
    feeds = calibration(checkpoint, task, None)
    assert len(feeds) >= (3 if task == "multiple-choice" else 100)


def test_of_many_texts_some_from_all_over_the_file_are_taken(checkpoint, tmp_path):
    (tmp_path / "texts.txt").write_text("play\n" * 3000 + "turn off the lights in the living room\n" * 3000)
    lengths = [
        feed["input_ids"].shape[1] for feed in calibration(checkpoint, "text-classification", tmp_path / "texts.txt")
    ]
    assert len(lengths) == 2000
    assert lengths.count(min(lengths)) == 1000


def test_a_text_that_makes_the_model_give_nan_is_refused(classifier, palmtop, tmp_path):
    folder = Path(shutil.copytree(classifier, tmp_path / "checkpoint"))
    subject = checkpoint_subject(open_source(folder), None, None)
    used = {int(one) for case in subject.cases() for one in np.unique(case.feeds["input_ids"])}
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    word = max((word for word, number in vocabulary.items() if number not in used and word.isalpha()), key=len)
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][vocabulary[word]] = float("inf")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (tmp_path / "texts.txt").write_text(f"play some music\n{word}\n")
    asked = ("--to", "onnx", "--quantize", "int8", "--calibrate", tmp_path / "texts.txt")
    ran = palmtop("export", folder, "-o", tmp_path / "b", *asked)
    assert ran.code == 2
    assert "an input makes the model give NaN or infinity" in ran.err
    assert not (tmp_path / "b").exists()


def test_calibration_sees_the_same_in_batches_as_one_at_a_time(classifier):
    subject = checkpoint_subject(open_source(classifier), None, None)
    captured = capture_subject(subject)
    feeds = list(single_rows(subject.calibration(None)))[:60]
    assert len({feed["input_ids"].shape for feed in feeds}) < len(feeds)
    done: list[None] = []
    together = observe(captured, feeds, lambda: done.append(None))
    alone = calibrate(captured.program, find_sites(captured.program), feeds)
    assert len(done) == len(feeds)
    for name, entry in alone.items():
        assert together[name].rows == entry.rows
        torch.testing.assert_close(together[name].largest, entry.largest, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together[name].hessian, entry.hessian, rtol=1e-3, atol=1e-3)


# --- what a model is judged on ---------------------------------------------------------------------------------------


def test_every_tenth_input_is_held_back_and_a_few_of_few():
    feeds = [{"x": np.full((1, 2), number)} for number in range(100)]

    def held(count: int) -> list[int]:
        kept, back = hold_back(feeds[:count])
        assert len(kept) + len(back) == count
        assert not {int(feed["x"][0, 0]) for feed in kept} & {int(feed["x"][0, 0]) for feed in back}
        return [int(feed["x"][0, 0]) for feed in back]

    assert held(100) == [9, 19, 29, 39, 49, 59, 69, 79, 89, 99]
    assert held(12) == [2, 5, 8, 11]
    assert held(11) == []


def test_texts_of_the_users_are_what_a_model_is_judged_on(classifier, palmtop, tmp_path):
    words = ("play", "stop", "jazz", "alarm", "living room", "at seven", "tomorrow")
    (tmp_path / "texts.txt").write_text(
        "".join(f"{a} {b} {c}\n" for a in words for b in words for c in words[: 1 + len(a) % 3])
    )
    asked = ("--to", "onnx", "--quantize", "int8", "--calibrate", tmp_path / "texts.txt")
    ran = palmtop("export", classifier, "-o", tmp_path / "b", *asked)
    assert ran.code == 0
    assert "inputs of " in ran.err
    manifest = Bundle.open(tmp_path / "b").manifest
    assert {artifact.quantization["judged_on"] for artifact in manifest.artifacts} == {"calibration"}
    report = json.loads((tmp_path / "b" / "parity.json").read_text())["artifacts"][0]
    (output,) = report["outputs"]
    assert output["worst_case"].startswith("held out")
    assert output["shapes"] >= 2  # alone and in batches
    assert output["bound"]["agreement"] == 0.995
    assert 0.9 < manifest.parity["artifacts"]["onnx"]["golden"]["logits"] < 1
    assert palmtop("verify", tmp_path / "b").code == 0
    assert palmtop("verify", tmp_path / "b", "--reference", classifier).code == 0


def test_golden_vectors_are_no_part_of_the_bound_where_the_users_texts_are(classifier, tmp_path):
    """What matters to the user agrees; other texts do not, and that is recorded, not refused."""
    (tmp_path / "texts.txt").write_text("play some jazz\n" * 40)
    asked = {"to": ["onnx"], "quantize": "int4", "fallback": False, "calibration": tmp_path / "texts.txt"}
    result = export_checkpoint(classifier, tmp_path / "b", min_agreement=0.995, **asked)
    golden = result.manifest.parity["artifacts"]["onnx"]["golden"]["logits"]
    assert golden < 0.995 <= result.report.artifacts[0].agreed
    assert verify_bundle(Bundle.open(tmp_path / "b")).passed
