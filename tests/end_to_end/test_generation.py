"""Models that generate go to all three formats, and give, token for token, what `model.generate` gives."""

from __future__ import annotations

import pytest
import torch
import transformers
from palmtop.export import export_checkpoint
from palmtop.runtime import load
from palmtop.runtime.bundle import Bundle
from palmtop.runtime.verify import verify_bundle

from ..support.generating import decoder_checkpoint, encoder_decoder_checkpoint

TARGETS = ("onnx", "coreml", "executorch")
PROMPT = "Wake me up at seven tomorrow"
CHECKPOINTS = {
    "text-generation": (decoder_checkpoint, transformers.AutoModelForCausalLM),
    "text2text-generation": (encoder_decoder_checkpoint, transformers.AutoModelForSeq2SeqLM),
}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def exported(request, tmp_path_factory):
    """A task, its checkpoint, and the bundle."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = CHECKPOINTS[request.param][0](folder / "checkpoint")
    return request.param, checkpoint, export_checkpoint(checkpoint, folder / "out.bundle", max_length=96)


def generated(task, checkpoint, **options) -> str:
    """What Transformers makes of the prompt, without it."""
    model = CHECKPOINTS[task][1].from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    encoded = tokenizer(PROMPT, return_tensors="pt")
    ids = model.generate(**encoded, **options)[0]
    new = ids if model.config.is_encoder_decoder else ids[encoded["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


def test_every_artifact_is_the_model(exported):
    task, _, result = exported
    assert {report.target: report.status for report in result.report.artifacts} == dict.fromkeys(TARGETS, "passed")
    assert all(report.cases >= 5 for report in result.report.artifacts)
    methods = {"decoder"} if task == "text-generation" else {"encoder", "decoder"}
    for target in TARGETS:
        assert {artifact.method for artifact in result.manifest.parts(target)} == methods


@pytest.mark.parametrize("target", TARGETS)
def test_greedy_text_is_that_of_generate_and_nothing_of_it_stays(exported, target):
    task, checkpoint, result = exported
    pipeline = load(result.path, target=target, threads=1)
    options = {"max_new_tokens": 48, "do_sample": False}
    wanted = generated(task, checkpoint, **options, num_beams=1)
    more = {"return_full_text": False} if task == "text-generation" else {}
    for _ in range(2):  # a conversation leaves nothing behind for the next
        assert pipeline(PROMPT, **options, num_beams=1, **more)[0].text == wanted
    assert "".join(pipeline.stream(PROMPT, **options)) == wanted


@pytest.mark.parametrize("target", TARGETS)
def test_beams_are_those_of_generate(exported, target):
    task, checkpoint, result = exported
    pipeline = load(result.path, target=target, threads=1)
    options = {"max_new_tokens": 16, "num_beams": 3, "do_sample": False}
    more = {"return_full_text": False} if task == "text-generation" else {}
    assert pipeline(PROMPT, **options, **more)[0].text == generated(task, checkpoint, **options)


def test_the_bundle_verifies_without_the_checkpoint(exported):
    report = verify_bundle(Bundle.open(exported[2].path))
    assert report.passed
    assert {entry.target for entry in report.artifacts} == set(TARGETS)
