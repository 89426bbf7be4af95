"""A session checks sizes, casts, and runs a batch row by row where the artifact takes one."""

from __future__ import annotations

import numpy as np
import pytest
from palmtop.runtime import session as module
from palmtop.runtime.errors import RequestError
from palmtop.runtime.manifest import Artifact, Dim, TensorSpec
from palmtop.runtime.session import Session

SEQUENCE = Dim(symbol="sequence", min=1, max=8)


class Doubles:
    """Gives twice `x`, and counts the rows it gets at once."""

    engine, identity = "numpy", None

    def __init__(self):
        self.rows: list[int] = []

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.rows.append(len(feeds["x"]))
        return {"y": 2 * feeds["x"]}


def session_of(batch: Dim) -> Session:
    inputs = tuple(TensorSpec(name, "int64", (batch, SEQUENCE)) for name in ("x", "mask"))
    outputs = (TensorSpec("y", "int64", (batch, SEQUENCE)),)
    return Session(Artifact("onnx", "model.onnx", "fp32", inputs, outputs), Doubles())


def feeds(rows: int, length: int, mask: int | None = None) -> dict[str, np.ndarray]:
    array = np.arange(rows * length).reshape(rows, length)
    return {"x": array, "mask": np.ones((rows, length if mask is None else mask), np.int64)}


@pytest.fixture
def session():
    return session_of(Dim(symbol="batch", min=1, max=4))


def test_feeds_are_cast_to_what_the_artifact_takes(session):
    given = {name: array.astype(np.int32) for name, array in feeds(2, 3).items()}
    np.testing.assert_array_equal(session.run(given)["y"], 2 * given["x"])
    assert session.run(given)["y"].dtype == np.int64


def test_inputs_that_nobody_asked_for_are_left_out_and_missing_ones_are_named(session):
    session.run(feeds(1, 3) | {"more": np.zeros(1)})
    with pytest.raises(RequestError, match=r"Missing input mask for model\.onnx"):
        session.run({"x": np.zeros((1, 3))})


@pytest.mark.parametrize("refused", [feeds(1, 9), feeds(5, 2), feeds(1, 3, mask=4)], ids=["long", "rows", "unequal"])
def test_what_the_artifact_does_not_take_is_refused_whatever_came_before(session, refused):
    for length in range(1, 9):
        session.run(feeds(1, length))
    for _ in range(2):
        with pytest.raises(RequestError, match="the artifact takes"):
            session.run(refused)


def test_more_shapes_than_are_remembered_are_checked_each_time(monkeypatch):
    monkeypatch.setattr(module, "_MOST_SHAPES", 4)
    session = session_of(Dim(symbol="batch", min=1, max=4))
    for rows in range(1, 5):
        for length in range(1, 9):
            assert session.run(feeds(rows, length))["y"].shape == (rows, length)
    with pytest.raises(RequestError, match=r"Input 'x' has shape \[1, 9\]"):
        session.run(feeds(1, 9))
    assert len(session._taken) == 2  # of two inputs each


def test_rows_run_one_by_one_where_the_artifact_takes_one():
    session = session_of(Dim(size=1))
    given = feeds(3, 5)
    np.testing.assert_array_equal(session.run(given)["y"], 2 * given["x"])
    assert session.runner.rows == [1, 1, 1]
    with pytest.raises(RequestError, match="the artifact takes"):
        session.run(feeds(3, 9))
