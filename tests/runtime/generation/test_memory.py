"""States may be as large as the weights: rows that are compared go one after the other, each with its own state."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from palmtop.runtime.generation.session import GenerationSession
from palmtop.runtime.manifest import Artifact, Dim, TensorSpec

TOKENS = TensorSpec("input_ids", "int64", (Dim(symbol="batch", min=1), Dim(symbol="tokens", min=1)))


class Sums:
    """A decoder with states whose logits are the sum of the tokens so far; counts the rows of each conversation."""

    stateful = True
    session = SimpleNamespace(runner=None, path=None)

    def __init__(self):
        self.rows: list[int] = []

    def start(self, beside: dict, rows: int) -> SimpleNamespace:
        self.rows.append(rows)
        total = 0

        def feed(ids: np.ndarray) -> np.ndarray:
            nonlocal total
            total += int(ids.sum())
            return np.full((len(ids), 5), float(total), np.float32)

        return SimpleNamespace(feed=feed)


def test_rows_of_a_decoder_with_states_are_run_one_by_one():
    decoder = Sums()
    artifact = Artifact(
        "executorch", "decoder.pte", "fp32", inputs=(TOKENS,), outputs=(), methods={"decoder": "forward"}
    )
    ids = np.arange(36).reshape(3, 12)
    logits = GenerationSession(artifact, decoder).run({"input_ids": ids})["logits"]
    assert decoder.rows == [1, 1, 1]
    assert logits.shape == (3, 8, 5)
    assert np.array_equal(logits[:, :, 0], np.cumsum(ids, axis=1)[:, 4:])
