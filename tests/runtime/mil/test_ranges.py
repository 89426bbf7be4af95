"""Ranges of what layers read: by the weight that they meet, over all inputs, and never from NaN."""

from __future__ import annotations

import numpy as np
import pytest
from palmtop.runtime.errors import RequestError
from palmtop.runtime.mil import Program
from palmtop.runtime.mil.ranges import activation_ranges

from .build import Builder

WEIGHT = np.full((3, 4), 0.5, np.float32)


@pytest.fixture
def package(tmp_path):
    """y = linear(relu(x)), and x times itself, which is no layer."""
    b = Builder()
    b.input("x", "fp32", (2, 4))
    weight = b.const(WEIGHT)
    b.op("relu", ("fp32", (2, 4)), x="x", name="positive")
    b.op("linear", ("fp32", (2, 3)), x="positive", weight=weight, bias=np.zeros(3, np.float32), name="y")
    b.op("matmul", ("fp32", (2, 2)), x="x", y="x", transpose_x=False, transpose_y=True, name="square")
    return b.save(tmp_path / "m.mlpackage", "y", "square"), weight


def feed(*values):
    return {"x": np.resize(np.array(values, np.float32), (2, 4))}


def test_a_range_is_the_least_and_greatest_number_over_all_inputs(package):
    path, weight = package
    assert activation_ranges(path, [feed(-1, 2), feed(0.5, 3), feed(0.25)]) == {weight: (0.0, 3.0)}
    assert activation_ranges(Program.load(path), [feed(0.25, 1.5)]) == {weight: (0.25, 1.5)}


def test_inputs_of_the_program_count_where_a_layer_reads_them(tmp_path):
    """In either place of a product, and for each weight that they meet."""
    b = Builder()
    b.input("x", "fp32", (2, 4))
    after, before = b.const(WEIGHT.T.copy()), b.const(np.ones((5, 2), np.float32))
    b.op("matmul", ("fp32", (2, 3)), x="x", y=after, transpose_x=False, transpose_y=False, name="y")
    b.op("matmul", ("fp32", (5, 4)), x=before, y="x", transpose_x=False, transpose_y=False, name="z")
    found = activation_ranges(b.save(tmp_path / "m.mlpackage", "y", "z"), [feed(-1, 2)])
    assert found == {after: (-1.0, 2.0), before: (-1.0, 2.0)}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_in_the_data_and_in_what_comes_of_it(tmp_path, package, bad):
    with pytest.raises(RequestError, match="input x has NaN or infinity"):
        activation_ranges(package[0], [feed(1), feed(1, bad)])
    b = Builder()
    b.input("x", "fp32", (2, 4))
    b.op("log", ("fp32", (2, 4)), x="x", epsilon=np.float32(0), name="logarithm")
    b.op("linear", ("fp32", (2, 3)), x="logarithm", weight=b.const(WEIGHT), bias=np.zeros(3, np.float32), name="y")
    with pytest.raises(RequestError, match="makes logarithm NaN or infinite"):
        activation_ranges(b.save(tmp_path / "n.mlpackage", "y"), [feed(1, 0)])


def test_no_data_is_refused(package):
    with pytest.raises(RequestError, match="at least one input"):
        activation_ranges(package[0], iter([]))
