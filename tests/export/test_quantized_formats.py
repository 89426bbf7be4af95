"""One plan in all formats: the artifacts agree with each other, and no row depends on what else is in the batch."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from palmtop.export import export_checkpoint
from palmtop.export.build import capture_subject
from palmtop.export.quantization import observe, preset_plan, quantized, single_rows
from palmtop.export.source import open_source
from palmtop.export.subject import checkpoint_subject
from palmtop.export.targets import Options, get_target
from palmtop.quantize.scheme import PRESETS
from palmtop.runtime.bundle import Bundle
from palmtop.runtime.labelled import read_data
from palmtop.runtime.session import Session
from palmtop.runtime.tokenizer import Tokenizer
from palmtop.runtime.verify import fit_feeds

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


def test_artifacts_of_one_plan_are_closer_to_each_other_than_to_the_fp32_model(intents):
    """Where weights are what is rounded most: engines round the inputs of layers each in its own way, or not at all.

    With 8 bits for both, that is about as much as the weights' error, and only the decisions agree.
    """
    preset, activations, answers = intents
    for one, other in itertools.combinations(TARGETS, 2):
        apart = distance(answers[one], answers[other])
        nearest, furthest = sorted(distance(answers[name], answers["fp32"]) for name in (one, other))
        if preset == "int4" or activations == "none":
            assert apart < 0.5 * nearest
        else:
            assert apart < 1.5 * furthest


def test_artifacts_of_one_plan_decide_alike(intents):
    *_, answers = intents
    decisions = np.stack([answers[name].argmax(1) for name in TARGETS])
    assert (decisions == decisions[0]).all(0).mean() >= 0.96
