"""Recurrent layers: gru, lstm, rnn.

x is [s, b, i]; weights are [gates * h, i] and [gates * h, h]. States stay in fp32 over all steps and are rounded to
the declared type once, at the end. A "reverse" layer reads the sequence backwards and gives its outputs in the order
in which it computes them; the reverse half of a "bidirectional" one is put back in the order of the input. Neither is
documented; coremltools' operator tests hold both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..registry import op

Activation = Callable[[np.ndarray], np.ndarray]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # exp(88.8) is inf in fp32, and 1 / inf the right answer
        return np.float32(1) / (np.float32(1) + np.exp(-x))


# hard_sigmoid and scaled_tanh take parameters in other Core ML layers; here they have none, and coremltools' tests
# expect 0.2 * x + 0.5 and a plain tanh. The definition of rnn spells the former "sigmoid_hard".
_ACTIVATIONS: dict[str, Activation] = {
    "tanh": np.tanh,
    "scaled_tanh": np.tanh,
    "sigmoid": _sigmoid,
    "hard_sigmoid": lambda x: np.clip(np.float32(0.2) * x + np.float32(0.5), 0, 1),
    "sigmoid_hard": lambda x: np.clip(np.float32(0.2) * x + np.float32(0.5), 0, 1),
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
}


def _activation(name: str) -> Activation:
    found = _ACTIVATIONS.get(str(name).lower())
    if found is None:
        raise ValueError(f'activation "{name}" is none of {", ".join(_ACTIVATIONS)}')
    return found


def _ordered(x: np.ndarray, direction: str) -> np.ndarray:
    if direction not in ("forward", "reverse"):
        raise ValueError(f'direction must be "forward" or "reverse", got "{direction}"')
    return x if direction == "forward" else x[::-1]


def _state(initial: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The initial state of each of the sequences of `x` [s, b, i]: the first b rows of `initial`.

    More rows than sequences are tolerated: coremltools converts a packed sequence (pack_padded_sequence) to a state
    with as many rows as the longest sequence has steps, and its tests expect Core ML to execute it.
    """
    batch = x.shape[1]
    if initial.ndim != 2 or len(initial) < batch:
        raise ValueError(f"an initial state {initial.shape} does not fit {batch} sequences")
    return initial[:batch]


def _projected(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """What the inputs of all steps give to the gates, in one product: [s, b, gates * h]."""
    result = np.matmul(x, weight.T)
    return result if bias is None else result + bias


def _for_batch(state: np.ndarray, batch: int) -> np.ndarray:
    """An initial state for `batch` sequences; rows that are all alike may be more or fewer than there are sequences.

    coremltools converts packed sequences with initial zeros for another batch size, and Core ML runs the result.
    """
    if len(state) != batch and len(state) and (state == state[:1]).all():
        return np.repeat(state[:1], batch, axis=0)
    return state


@op("rnn")
def rnn(
    x: np.ndarray,
    initial_h: np.ndarray,
    weight_ih: np.ndarray,
    weight_hh: np.ndarray,
    bias: np.ndarray | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[np.ndarray, np.ndarray]:
    """h = activation(W_ih x + W_hh h + b). Returns all states (or the last, [1, b, h]) and the last one."""
    act = _activation(activation)
    gates = _projected(_ordered(x, direction), weight_ih, bias)
    h = _state(initial_h, x)
    states = np.empty((len(x), *h.shape), np.float32)
    for t, given in enumerate(gates):
        h = act(given + h @ weight_hh.T)
        states[t] = h
    return (states if output_sequence else h[None]), h


@op("gru")
def gru(
    x: np.ndarray,
    initial_h: np.ndarray,
    weight_ih: np.ndarray,
    weight_hh: np.ndarray,
    bias: np.ndarray | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """h = (1 - z) * o + z * h with gates in the order r, o, z.

    The reset gate multiplies h before W_ho as in Cho et al. 2014 (coremltools' tests; the formula in its documentation
    says the opposite), or with `reset_after` (iOS 18) the product W_ho h + bias, as in PyTorch. `bias` belongs to the
    hidden side and `input_bias` to the input side.
    """
    inner, outer = _activation(recurrent_activation), _activation(activation)
    gates = _projected(_ordered(x, direction), weight_ih, input_bias)
    size = weight_hh.shape[1]
    own = np.zeros(3 * size, np.float32) if bias is None else np.asarray(bias)
    reset, new, update = slice(0, size), slice(size, 2 * size), slice(2 * size, 3 * size)
    h = _state(initial_h, x)
    states = np.empty((len(x), *h.shape), np.float32)
    for t, given in enumerate(gates):
        if reset_after:
            hidden = h @ weight_hh.T + own
            r, z = inner(given[:, reset] + hidden[:, reset]), inner(given[:, update] + hidden[:, update])
            o = outer(given[:, new] + r * hidden[:, new])
        else:
            r = inner(given[:, reset] + h @ weight_hh[reset].T + own[reset])
            z = inner(given[:, update] + h @ weight_hh[update].T + own[update])
            o = outer(given[:, new] + (r * h) @ weight_hh[new].T + own[new])
        h = (1 - z) * o + z * h
        states[t] = h
    return (states if output_sequence else h[None]), h


@op("lstm")
def lstm(
    x: np.ndarray,
    initial_h: np.ndarray,
    initial_c: np.ndarray,
    weight_ih: np.ndarray,
    weight_hh: np.ndarray,
    bias: np.ndarray | None = None,
    peephole: np.ndarray | None = None,
    weight_ih_back: np.ndarray | None = None,
    weight_hh_back: np.ndarray | None = None,
    bias_back: np.ndarray | None = None,
    peephole_back: np.ndarray | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: Any = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """LSTM with gates in the order input, forget, output, cell; returns states, last h and last c.

    The peephole of the output gate looks at the new cell; `clip` bounds the cell after its update (coremltools' tests;
    the documentation speaks of the "cell gate"). A bidirectional layer has [b, 2 * h] states, forward half first.
    """
    acts = (_activation(recurrent_activation), _activation(cell_activation), _activation(activation))
    initial_h, initial_c = _for_batch(initial_h, x.shape[1]), _for_batch(initial_c, x.shape[1])
    initial_h, initial_c = _state(initial_h, x), _state(initial_c, x)
    if direction != "bidirectional":
        states, h, c = _lstm(
            _ordered(x, direction), initial_h, initial_c, weight_ih, weight_hh, bias, peephole, acts, clip
        )
        return (states if output_sequence else h[None]), h, c
    if weight_ih_back is None or weight_hh_back is None:
        raise ValueError("a bidirectional lstm needs weight_ih_back and weight_hh_back")
    size = weight_hh.shape[1]
    one = _lstm(x, initial_h[:, :size], initial_c[:, :size], weight_ih, weight_hh, bias, peephole, acts, clip)
    two = _lstm(
        x[::-1],
        initial_h[:, size:],
        initial_c[:, size:],
        weight_ih_back,
        weight_hh_back,
        bias_back,
        peephole_back,
        acts,
        clip,
    )
    h, c = np.concatenate([one[1], two[1]], axis=1), np.concatenate([one[2], two[2]], axis=1)
    if output_sequence:
        return np.concatenate([one[0], two[0][::-1]], axis=2), h, c
    return h[None], h, c


def _lstm(
    x: np.ndarray,
    h: np.ndarray,
    c: np.ndarray,
    weight_ih: np.ndarray,
    weight_hh: np.ndarray,
    bias: np.ndarray | None,
    peephole: np.ndarray | None,
    acts: tuple[Activation, Activation, Activation],
    clip: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One direction over `x` as it comes: all states [s, b, h], the last h and the last c."""
    inner, cell, outer = acts
    size = weight_hh.shape[1]
    bound = None if clip is None else np.float32(clip)
    look = None if peephole is None else np.reshape(peephole, (3, size))
    gates = _projected(x, weight_ih, bias)
    states = np.empty((len(x), *h.shape), np.float32)
    for t, given in enumerate(gates):
        gate = given + h @ weight_hh.T
        if look is None:
            ifo = inner(gate[:, : 3 * size])
            i, f, o = ifo[:, :size], ifo[:, size : 2 * size], ifo[:, 2 * size :]
        else:
            i = inner(gate[:, :size] + look[0] * c)
            f = inner(gate[:, size : 2 * size] + look[1] * c)
        c = f * c + i * cell(gate[:, 3 * size :])
        if bound is not None:
            c = np.clip(c, -bound, bound)
        if look is not None:
            o = inner(gate[:, 2 * size : 3 * size] + look[2] * c)
        h = o * outer(c)
        states[t] = h
    return states, h, c
