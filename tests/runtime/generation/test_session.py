"""A model that generates is compared at its last positions, which it reaches as generation does: step by step."""

import numpy as np
import pytest
from palmtop.runtime.assembly import signature
from palmtop.runtime.errors import RequestError
from palmtop.runtime.generation.decoder import Decoder
from palmtop.runtime.generation.session import GenerationSession
from palmtop.runtime.manifest import Artifact, Dim, TensorSpec
from palmtop.runtime.session import Session

from ...support.toy_decoder import ONE, logits_of, toy_session

IDS = np.random.default_rng(0).integers(0, 12, (3, 10))
BATCH = Dim(symbol="batch", min=1)


def session(form):
    step = toy_session(form)
    return GenerationSession(signature([step.artifact]), Decoder(step))


@pytest.mark.parametrize("form", ["growing", "fixed", "states"])
@pytest.mark.parametrize("length", [1, 3, 8, 9, 10])
def test_the_last_positions_are_reached_by_a_prefill_and_steps_of_one_token(form, length):
    model = session(form)
    (logits,) = model.run({"input_ids": IDS[:, :length]}).values()
    positions = range(max(length - 8, 0), length)
    expected = np.stack([logits_of(IDS[:, : place + 1]) for place in positions], axis=1)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-4)
    steps = [max(length - 7, 1)] + [1] * (min(length, 8) - 1)
    rows = 1 if form == "growing" else 3  # artifacts of one row run once for each, with states one row after the other
    each = steps * rows if form == "states" else [size for size in steps for _ in range(rows)]
    assert model.decoder.session.runner.calls == each


def test_the_encoder_runs_once_and_its_inputs_go_to_the_decoder_too():
    class Encoder:
        engine, identity, calls = "numpy", None, 0

        def run(self, feeds):
            self.calls += 1
            return {"cross_key_0": feeds["input_ids"].astype(np.float32)}

    axis = Dim(symbol="encoded", min=1)
    reads = Artifact(
        "onnx",
        "onnx/encoder.onnx",
        "fp32",
        (TensorSpec("input_ids", "int64", (BATCH, axis)),),
        (TensorSpec("cross_key_0", "float32", (BATCH, axis)),),
        methods={"encoder": "main"},
    )
    step = toy_session("growing", extra=(TensorSpec("cross_key_0", "float32", (BATCH, axis)),))
    inputs = (TensorSpec("decoder_input_ids", "int64", step.artifact.inputs[0].dims), *step.artifact.inputs[1:])
    artifact = Artifact("onnx", "onnx/decoder.onnx", "fp32", inputs, step.artifact.outputs, methods={"decoder": "main"})
    encoder = Encoder()
    model = GenerationSession(
        signature([reads, artifact]), Decoder(Session(artifact, step.runner)), Session(reads, encoder)
    )
    read = np.array([[1, 2, 3], [4, 5, 6], [0, 0, 1]])
    (logits,) = model.run({"input_ids": read, "decoder_input_ids": IDS[:, :4]}).values()
    for row in range(3):
        expected = logits_of(IDS[row : row + 1, :4], read[row].sum())
        np.testing.assert_allclose(logits[row, -1:], expected, rtol=1e-5, atol=1e-4)
    assert encoder.calls == 1
    with pytest.raises(RequestError, match="decoder_input_ids"):
        model.run({"input_ids": read})


def test_beams_of_several_rows_keep_what_the_encoder_gave_each():
    for batch in (BATCH, ONE):
        cross = TensorSpec("cross_key_0", "float32", (batch, Dim(symbol="frames", min=1)))
        decoder = Decoder(toy_session("growing", batch=batch, extra=(cross,)))
        conversation = decoder.start({"cross_key_0": np.array([[1.0], [5.0]], np.float32)}, rows=2)
        conversation.feed([[1], [2]])
        conversation.reorder([1, 0, 1])
        logits = conversation.feed([[3], [4], [5]])
        for row, (ids, bias) in enumerate([([2, 3], 5), ([1, 4], 1), ([2, 5], 5)]):
            np.testing.assert_allclose(logits[row : row + 1], logits_of(np.array([ids]), bias), rtol=1e-5, atol=1e-4)
