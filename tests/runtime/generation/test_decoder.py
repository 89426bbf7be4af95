"""Steps through a cache give what the whole sequence gives, in each form in which artifacts keep it."""

import numpy as np
import pytest
from palmtop.runtime.backends.onnx import OnnxRunner
from palmtop.runtime.errors import DamagedError, RequestError
from palmtop.runtime.generation.decoder import Decoder
from palmtop.runtime.manifest import Dim, TensorSpec
from palmtop.runtime.session import Session

from ...support.toy_decoder import ONE, logits_of, toy_session, write_growing_onnx

FORMS = ("growing", "fixed", "states", "none")
IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])


def assert_logits(actual, ids, bias=0.0):
    np.testing.assert_allclose(actual, logits_of(np.asarray(ids), bias), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [(8,), (1,) * 8, (5, 1, 1, 1), (3, 1, 4)])
def test_steps_give_what_the_whole_sequence_gives(form, steps):
    conversation = Decoder(toy_session(form)).start()
    fed = 0
    for step in steps:
        logits = conversation.feed(IDS[:, fed : fed + step])
        fed += step
        assert conversation.length == fed
        assert_logits(logits, IDS[:, :fed])


def test_a_real_onnx_decoder_steps_likewise(tmp_path):
    artifact = write_growing_onnx(tmp_path / "decoder.onnx")
    session = Session(artifact, OnnxRunner(tmp_path / "decoder.onnx", artifact, 1))
    conversation = Decoder(session).start()
    assert_logits(conversation.feed(IDS[:, :5]), IDS[:, :5])
    conversation.reorder([0, 0])
    assert_logits(conversation.feed([[7], [8]]), [[*IDS[0, :5], 7], [*IDS[0, :5], 8]])
    conversation.reorder([1, 1])
    assert_logits(conversation.feed([[2], [0]]), [[*IDS[0, :5], 8, 2], [*IDS[0, :5], 8, 0]])


@pytest.mark.parametrize("form", FORMS)
def test_conversations_do_not_hear_each_other(form):
    decoder = Decoder(toy_session(form))
    one, other = decoder.start(), decoder.start()
    one.feed(IDS[:, :4])
    assert_logits(other.feed([[2]]), [[2]])
    assert_logits(one.feed([[7]]), [[*IDS[0, :4], 7]])
    assert_logits(other.feed([[6]]), [[2, 6]])
    assert_logits(decoder.start().feed([[11]]), [[11]])


@pytest.mark.parametrize(
    ("sequence", "calls"),
    [
        (Dim(symbol="sequence", min=1, max=3), [3, 3, 2]),
        (Dim(symbol="sequence", values=(1, 4)), [4, 4]),
        (Dim(symbol="sequence", values=(1, 5)), [5, 1, 1, 1]),
        (ONE, [1] * 8),
    ],
)
@pytest.mark.parametrize("form", ["growing", "fixed", "states"])
def test_a_prompt_longer_than_the_artifact_takes_is_fed_in_pieces(form, sequence, calls):
    session = toy_session(form, sequence=sequence)
    assert_logits(Decoder(session).start().feed(IDS), IDS)
    assert session.runner.calls == calls


def test_pieces_that_cannot_make_up_the_prompt_are_refused():
    with pytest.raises(RequestError, match="cannot be split"):
        Decoder(toy_session("fixed", sequence=Dim(size=3))).start().feed(IDS)


@pytest.mark.parametrize(("form", "context"), [("growing", 9), ("fixed", None), ("states", 10), ("none", 8)])
def test_more_than_the_context_is_refused_and_says_so(form, context):
    conversation = Decoder(toy_session(form), context).start()
    room = context or 10
    conversation.feed(IDS)
    for _ in range(room - 8):
        conversation.feed([[1]])
    with pytest.raises(RequestError, match=f"context is {room} tokens"):
        conversation.feed([[1]])


@pytest.mark.parametrize("form", FORMS)
def test_beams_go_on_from_the_rows_they_came_from(form):
    conversation = Decoder(toy_session(form)).start()
    conversation.feed(IDS[:, :2])
    conversation.reorder([0, 0, 0])
    assert conversation.rows == 3
    assert_logits(conversation.feed([[5], [6], [7]]), [[3, 1, 5], [3, 1, 6], [3, 1, 7]])
    conversation.reorder([2, 0, 2])
    assert_logits(conversation.feed([[1], [2], [3]]), [[3, 1, 7, 1], [3, 1, 5, 2], [3, 1, 7, 3]])
    conversation.reorder([2, 2, 2])
    assert_logits(conversation.feed([[1], [2], [4]]), [[3, 1, 7, 3, 1], [3, 1, 7, 3, 2], [3, 1, 7, 3, 4]])
    conversation.reorder([1])
    assert_logits(conversation.feed([[8]]), [[3, 1, 7, 3, 2, 8]])


def test_a_state_that_becomes_another_beam_reads_only_what_they_do_not_share():
    session = toy_session("states")
    conversation = Decoder(session).start()
    conversation.feed(IDS[:, :4])
    conversation.reorder([0, 0])
    assert session.runner.calls == [4, 4]  # a new state reads all
    conversation.feed([[5], [6]])
    conversation.feed([[7], [7]])
    del session.runner.calls[:]
    conversation.reorder([1, 1])
    assert session.runner.calls == [2]  # and an old one what it has not read
    conversation.reorder([1, 0])
    assert session.runner.calls == [2]
    assert_logits(conversation.feed([[8], [9]]), [[*IDS[0, :4], 6, 7, 8], [*IDS[0, :4], 6, 7, 9]])


def test_a_state_reads_again_in_the_pieces_that_the_artifact_takes():
    session = toy_session("states", sequence=Dim(symbol="sequence", values=(1, 2)))
    conversation = Decoder(session).start()
    conversation.feed(IDS[:, :5])
    conversation.reorder([0, 0])
    assert session.runner.calls == [2, 2, 1] * 2
    assert_logits(conversation.feed([[5], [6]]), [[*IDS[0, :5], 5], [*IDS[0, :5], 6]])


def test_states_that_are_no_cache_cannot_become_beams():
    conversation = Decoder(toy_session("states", layout="other")).start()
    conversation.feed(IDS)
    conversation.reorder([0])
    with pytest.raises(RequestError, match="num_beams=1"):
        conversation.reorder([0, 0])


@pytest.mark.parametrize("form", ["growing", "fixed"])
def test_what_the_encoder_gives_goes_into_every_step_and_every_beam(form):
    batch = ONE if form == "fixed" else Dim(symbol="batch", min=1)
    cross = TensorSpec("cross_key_0", "float32", (batch, Dim(symbol="frames", min=1)))
    decoder = Decoder(toy_session(form, extra=(cross,)))
    with pytest.raises(RequestError, match="cross_key_0"):
        decoder.start()
    conversation = decoder.start({"cross_key_0": np.array([[1.0, 2.0]], np.float32), "unused": np.zeros(3)})
    assert_logits(conversation.feed([[1, 2]]), [[1, 2]], bias=3.0)
    conversation.reorder([0, 0])
    assert_logits(conversation.feed([[4], [5]]), [[1, 2, 4], [1, 2, 5]], bias=3.0)


def test_rows_of_different_encodings_share_nothing():
    cross = TensorSpec("cross_key_0", "float32", (ONE, Dim(symbol="frames", min=1)))
    session = toy_session("states", extra=(cross,))
    conversation = Decoder(session).start({"cross_key_0": np.array([[1.0], [2.0]], np.float32)}, rows=2)
    conversation.feed([[1, 2], [1, 2]])
    del session.runner.calls[:]
    conversation.reorder([1, 1])
    assert session.runner.calls == [2]
    assert_logits(conversation.feed([[4], [5]]), [[1, 2, 4], [1, 2, 5]], bias=2.0)


@pytest.mark.parametrize("ids", [[[]], [[1], [2]], [1, 2], np.zeros((0, 1), int)])
def test_tokens_of_another_shape_are_refused(ids):
    with pytest.raises(RequestError, match="cannot go on"):
        Decoder(toy_session("growing")).start().feed(ids)


def test_an_artifact_that_is_no_decoder_is_named():
    session = toy_session("growing")
    artifact = session.artifact
    for changed in (
        {"inputs": artifact.inputs[1:]},
        {"outputs": artifact.outputs[1:]},
        {"outputs": artifact.outputs[:1]},
    ):
        fields = {
            **{name: getattr(artifact, name) for name in ("target", "path", "precision", "inputs", "outputs")},
            **changed,
        }
        with pytest.raises(DamagedError, match="growing"):
            Decoder(Session(type(artifact)(**fields), session.runner))
