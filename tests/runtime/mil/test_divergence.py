"""Half precision explains itself: the declared run and the unrounded one, side by side."""

from __future__ import annotations

import numpy as np
import pytest
from palmtop.runtime.errors import RequestError
from palmtop.runtime.mil import Program
from palmtop.runtime.mil.divergence import divergence, in_lockstep
from palmtop.runtime.parity import Bound

from .build import Builder

HALF = ("fp16", (4,))


def saved(b: Builder, tmp_path, *outputs: str) -> Program:
    return Program.load(b.save(tmp_path / "m.mlpackage", *outputs))


def norm_that_overflows(tmp_path) -> Program:
    """x / sqrt(x * x): infinite on the way, finite and wrong (0) at the end."""
    b = Builder()
    b.input("x", "fp16", (4,))
    b.op("square", HALF, x="x", name="squares")
    b.op("sqrt", HALF, x="squares", name="size")
    b.op("real_div", HALF, x="x", y="size", name="y")
    return saved(b, tmp_path, "y")


def test_an_overflow_is_found_behind_a_finite_output(tmp_path):
    program = norm_that_overflows(tmp_path)
    x = np.array([1, -2, 600, 3], np.float16)
    assert np.isfinite(program.predict({"x": x})["y"]).all()
    found = divergence(program, {"x": x}, {"squares": "layers.0.norm", "size": "reader", "y": ""})
    assert (found.first.name, found.first.type, found.first.module) == ("squares", "square", "layers.0.norm")
    assert found.first.overflows
    assert found.first.measure.nonfinite == 1
    assert found.overflowing == {"layers.0.norm": pytest.approx(360_000), "reader": pytest.approx(360_000)}
    assert [operation.name for operation in found.operations] == ["squares", "size", "y"]


def test_what_fits_fp16_has_nothing_to_blame(tmp_path):
    found = divergence(norm_that_overflows(tmp_path), {"x": np.array([1, -2, 6, 3], np.float16)})
    assert found.first is None
    assert found.overflowing == {}
    assert max(operation.measure.max_error for operation in found.operations) < 1e-3


def test_a_cancellation_is_blamed_where_it_happens(tmp_path):
    """1024 + x keeps no fraction of x in fp16; the error shows once 1024 is taken away again."""
    b = Builder()
    b.input("x", "fp16", (4,))
    b.op("add", HALF, x="x", y=np.float16(1024), name="far")
    b.op("sub", HALF, x="far", y=np.float16(1024), name="back")
    b.op("mul", HALF, x="back", y=np.float16(2), name="y")
    program = saved(b, tmp_path, "y")
    found = divergence(program, {"x": np.array([0.3, 0.2, -0.1, 0.45], np.float16)}, bound=Bound(0.1, 0.05))
    assert found.first.name == "back"
    assert not found.first.overflows


def test_drift_that_reaches_no_output_is_not_blamed(tmp_path):
    b = Builder()
    b.input("x", "fp16", (4,))
    b.op("add", HALF, x="x", y=np.float16(1024), name="far")
    b.op("sub", HALF, x="far", y=np.float16(1024), name="back")
    b.op("mul", HALF, x="back", y=np.float16(0.0001), name="little")
    b.op("add", HALF, x="x", y="little", name="y")
    program = saved(b, tmp_path, "y")
    found = divergence(program, {"x": np.array([0.3, 0.2, -0.1, 0.45], np.float16)}, bound=Bound(0.1, 0.05))
    assert any(operation.exceeds for operation in found.operations)
    assert found.first is None


def test_both_runs_see_the_same_operations_in_order(tmp_path):
    program = norm_that_overflows(tmp_path)
    seen = []
    in_lockstep(program, {"x": np.ones(4, np.float16)}, lambda name, kind, one, other: seen.append((name, kind)))
    assert seen == [("squares", "square"), ("size", "sqrt"), ("y", "real_div")]


def test_an_error_of_either_run_is_the_callers(tmp_path):
    with pytest.raises(RequestError, match="input x is missing"):
        divergence(norm_that_overflows(tmp_path), {})


def test_a_condition_that_rounding_turns_ends_the_comparison(tmp_path):
    """x + 1024 > 1024 is true unrounded, false in fp16: the branches have nothing in common."""
    b = Builder()
    b.input("x", "fp16", (4,))
    b.op("add", HALF, x="x", y=np.float16(1024), name="far")
    b.op("reduce_max", ("fp16", ()), x="far", keep_dims=False, name="top")
    b.op("greater", ("bool", ()), x="top", y=np.float16(1024), name="more")
    b.op("cond", HALF, pred="more", name="y")
    for kind in ("add", "sub"):
        block = b.block.operations[-1].blocks.add()
        block.outputs.append(b.op(kind, HALF, block=block, x="x", y=np.float16(1), name=f"branch_{kind}"))
    program = saved(b, tmp_path, "y")
    found = divergence(program, {"x": np.full(4, 0.25, np.float16)})
    assert [operation.name for operation in found.operations] == ["far", "top"]
