"""Recurrent layers agree with PyTorch, and with a plain transcription where PyTorch has no such option."""

import numpy as np
import pytest
import torch
from palmtop.runtime.mil.ops.recurrent import gru, lstm, rnn

STEPS, BATCH, INPUTS, SIZE = 5, 3, 4, 6


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def reordered(array: torch.Tensor, order: str, wanted: str) -> np.ndarray:
    """Gate blocks of `array` from the order of PyTorch to that of MIL."""
    blocks = dict(zip(order, np.split(array.detach().numpy(), len(order)), strict=True))
    return np.concatenate([blocks[gate] for gate in wanted])


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_rnn_reads_backwards_and_answers_in_that_order(direction):
    torch.manual_seed(0)
    layer = torch.nn.RNN(INPUTS, SIZE)
    x, h = normal(STEPS, BATCH, INPUTS), normal(BATCH, SIZE)
    weights = [p.detach().numpy() for p in layer.parameters()]
    read = x if direction == "forward" else x[::-1].copy()
    states, last = (v.detach().numpy() for v in layer(torch.tensor(read), torch.tensor(h[None])))
    ours = rnn(x, h, weights[0], weights[1], weights[2] + weights[3], direction, True)
    np.testing.assert_allclose(ours[0], states, atol=1e-6)
    np.testing.assert_allclose(ours[1], last[0], atol=1e-6)
    short = rnn(x, h, weights[0], weights[1], weights[2] + weights[3], direction)
    np.testing.assert_allclose(short[0], states[-1:], atol=1e-6)


def test_gru_with_reset_after_is_pytorchs():
    torch.manual_seed(0)
    layer = torch.nn.GRU(INPUTS, SIZE)
    w_ih, w_hh, b_ih, b_hh = (reordered(p, "rzo", "roz") for p in layer.parameters())
    x, h = normal(STEPS, BATCH, INPUTS), normal(BATCH, SIZE)
    states, last = (v.detach().numpy() for v in layer(torch.tensor(x), torch.tensor(h[None])))
    ours = gru(x, h, w_ih, w_hh, b_hh, output_sequence=True, reset_after=True, input_bias=b_ih)
    np.testing.assert_allclose(ours[0], states, atol=1e-6)
    np.testing.assert_allclose(ours[1], last[0], atol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gru_resets_the_state_before_the_product(direction):
    x, h = normal(STEPS, BATCH, INPUTS), normal(BATCH, SIZE)
    w_ih, w_hh, bias = normal(3 * SIZE, INPUTS), normal(3 * SIZE, SIZE), normal(3 * SIZE)
    ours = gru(x, h, w_ih, w_hh, bias, direction, True, "hard_sigmoid", "relu")
    (wr, wo, wz), (ur, uo, uz), (br, bo, bz) = (np.split(a, 3) for a in (w_ih, w_hh, bias))
    for t, step in enumerate(x if direction == "forward" else x[::-1]):
        r = np.clip(0.2 * (step @ wr.T + h @ ur.T + br) + 0.5, 0, 1)
        z = np.clip(0.2 * (step @ wz.T + h @ uz.T + bz) + 0.5, 0, 1)
        o = np.maximum(step @ wo.T + (r * h) @ uo.T + bo, 0)
        h = (1 - z) * o + z * h
        np.testing.assert_allclose(ours[0][t], h, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ours[1], ours[0][-1])


def test_bidirectional_lstm_is_pytorchs():
    torch.manual_seed(0)
    layer = torch.nn.LSTM(INPUTS, SIZE, bidirectional=True)
    w = {name: reordered(p, "ifzo", "ifoz") for name, p in layer.named_parameters()}
    x, h, c = normal(STEPS, BATCH, INPUTS), normal(2, BATCH, SIZE), normal(2, BATCH, SIZE) * 2
    states, (last_h, last_c) = layer(torch.tensor(x), (torch.tensor(h), torch.tensor(c)))
    options = {
        "bias": w["bias_ih_l0"] + w["bias_hh_l0"],
        "weight_ih_back": w["weight_ih_l0_reverse"],
        "weight_hh_back": w["weight_hh_l0_reverse"],
        "bias_back": w["bias_ih_l0_reverse"] + w["bias_hh_l0_reverse"],
        "direction": "bidirectional",
    }
    inputs = x, np.concatenate(h, 1), np.concatenate(c, 1), w["weight_ih_l0"], w["weight_hh_l0"]
    ours = lstm(*inputs, output_sequence=True, **options)
    states, last_h, last_c = (v.detach().numpy() for v in (states, last_h, last_c))
    np.testing.assert_allclose(ours[0], states, atol=1e-6)
    np.testing.assert_allclose(ours[1], np.concatenate(last_h, 1), atol=1e-6)
    np.testing.assert_allclose(ours[2], np.concatenate(last_c, 1), atol=1e-6)
    short = lstm(*inputs, **options)[0]
    np.testing.assert_allclose(short[0], np.concatenate([states[-1, :, :SIZE], states[0, :, SIZE:]], 1), atol=1e-6)


@pytest.mark.parametrize("clip", [None, 0.3])
def test_lstm_peepholes_see_the_old_cell_and_the_output_gate_the_new_clipped_one(clip):
    x, h, c = normal(STEPS, BATCH, INPUTS), normal(BATCH, SIZE), normal(BATCH, SIZE) + 1
    w_ih, w_hh, bias, look = normal(4 * SIZE, INPUTS), normal(4 * SIZE, SIZE), normal(4 * SIZE), normal(3 * SIZE)
    ours = lstm(x, h, c, w_ih, w_hh, bias, look, direction="reverse", output_sequence=True, clip=clip)
    (wi, wf, wo, wz), (ui, uf, uo, uz), (bi, bf, bo, bz) = (np.split(a, 4) for a in (w_ih, w_hh, bias))
    pi, pf, po = np.split(look, 3)

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    for t, step in enumerate(x[::-1]):
        i = sigmoid(step @ wi.T + h @ ui.T + bi + pi * c)
        f = sigmoid(step @ wf.T + h @ uf.T + bf + pf * c)
        c = f * c + i * np.tanh(step @ wz.T + h @ uz.T + bz)
        c = c if clip is None else np.clip(c, -clip, clip)
        o = sigmoid(step @ wo.T + h @ uo.T + bo + po * c)
        h = o * np.tanh(c)
        np.testing.assert_allclose(ours[0][t], h, atol=1e-5)
    np.testing.assert_allclose(ours[2], c, atol=1e-5)


def test_unknown_activations_and_directions_are_refused():
    x, h = normal(STEPS, BATCH, INPUTS), normal(BATCH, SIZE)
    w_ih, w_hh = normal(SIZE, INPUTS), normal(SIZE, SIZE)
    with pytest.raises(ValueError, match="swish"):
        rnn(x, h, w_ih, w_hh, activation="swish")
    with pytest.raises(ValueError, match="sideways"):
        rnn(x, h, w_ih, w_hh, direction="sideways")


def test_an_initial_state_may_have_too_many_rows_but_not_too_few():
    x, h = normal(STEPS, BATCH, INPUTS), normal(BATCH + 2, SIZE)
    w_ih, w_hh = normal(4 * SIZE, INPUTS), normal(4 * SIZE, SIZE)
    exact = lstm(x, h[:BATCH], h[:BATCH], w_ih, w_hh)
    for ours, expected in zip(lstm(x, h, h, w_ih, w_hh), exact, strict=True):
        np.testing.assert_array_equal(ours, expected)
    with pytest.raises(ValueError, match="does not fit 3 sequences"):
        lstm(x, h[:2], h[:2], w_ih, w_hh)
