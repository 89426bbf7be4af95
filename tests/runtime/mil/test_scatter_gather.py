"""Gathers and scatters agree with numpy and PyTorch; indices out of bounds follow the opset."""

import numpy as np
import pytest
import torch
from palmtop.runtime.mil.ops import scatter_gather as ops

X = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize("axis", [-3, -1, 0, 1, 2])
@pytest.mark.parametrize("indices", [1, [0, -1, 1], [[1, 0], [0, -2]]])
def test_gather_is_numpys_take(axis, indices):
    np.testing.assert_array_equal(ops.gather(X, np.array(indices), axis), X.take(indices, axis))


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
@pytest.mark.parametrize("more", [(), (5,), (2, 3)])
def test_gather_pairs_batch_dimensions(axis, more):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    indices = np.random.default_rng(1).integers(0, 3, (2, *more))
    expected = np.stack([x[b].take(indices[b], axis - 1 if axis > 0 else axis) for b in range(2)])
    np.testing.assert_array_equal(ops.gather_ios17(x, indices, axis, batch_dims=1), expected)


def test_gather_along_axis_is_numpys():
    indices = np.random.default_rng(1).integers(-3, 3, (2, 5, 4))
    np.testing.assert_array_equal(ops.gather_along_axis(X, indices, 1), np.take_along_axis(X, indices, 1))
    with pytest.raises(ValueError, match="must have the shape"):
        ops.gather_along_axis(X, indices[:1], 1)


def test_gather_nd_takes_slices_and_elements():
    np.testing.assert_array_equal(ops.gather_nd(X, np.array([[1, 2], [0, -1]])), X[[1, 0], [2, -1]])
    np.testing.assert_array_equal(ops.gather_nd(X, np.array([[1, 2, 3]], np.uint8)), X[[1], [2], [3]])
    batched = ops.gather_nd_ios17(X, np.array([[[2], [0]], [[1], [1]]]), batch_dims=1)
    np.testing.assert_array_equal(batched, [[X[0, 2], X[0, 0]], [X[1, 1], X[1, 1]]])


@pytest.mark.parametrize("mode", ["add", "mul", "max", "min"])
def test_scatter_along_axis_reduces_repeated_indices_like_pytorch(mode):
    rng = np.random.default_rng(2)
    data, updates = rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 6, 5))
    indices = rng.integers(0, 4, updates.shape)
    name = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[mode]
    theirs = torch.tensor(data).scatter_reduce(1, torch.tensor(indices), torch.tensor(updates), name)
    for version in (ops.scatter_along_axis, ops.scatter_along_axis_ios17):
        np.testing.assert_allclose(version(data, indices, updates, 1, mode), theirs.numpy())


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("update", [7, 2, 2]), ("add", [13, 2, 10]), ("sub", [-11, 2, -4]), ("mul", [35, 2, 6]), ("div", [0, 2, 1])],
)
def test_scatters_apply_every_mode_to_integers_too(mode, expected):
    data = np.array([1, 2, 3], np.int32)
    indices, updates = np.array([0, 2, 0]), np.array([5, 7, 7], np.int32)
    if mode in ("update", "mul", "div"):
        updates[1] = 2
    np.testing.assert_array_equal(ops.scatter(data, indices, updates, 0, mode), expected)
    np.testing.assert_array_equal(ops.scatter_along_axis(data, indices, updates, 0, mode), expected)
    np.testing.assert_array_equal(ops.scatter_nd(data, indices[:, None], updates, mode), expected)
    assert ops.scatter(data, indices, updates, 0, mode).dtype == np.int32


def test_scatter_writes_slices_along_any_axis_and_leaves_its_input_alone():
    before = X.copy()
    updates = np.full((2, 2, 4), 100, np.float32)
    expected = X.copy()
    expected[:, [2, 0]] = 100
    np.testing.assert_array_equal(ops.scatter(X, np.array([2, 0]), updates, axis=-2, mode="update"), expected)
    np.testing.assert_array_equal(X, before)


def test_scatter_nd_writes_slices():
    expected = X.copy()
    expected[1, 0] += 1
    expected[0, 2] += 2
    updates = np.array([[1] * 4, [2] * 4], np.float32)
    np.testing.assert_array_equal(ops.scatter_nd(X, np.array([[1, 0], [0, -1]]), updates), expected)


GATHERS = {
    "gather": (lambda v, i: v(X, np.array(i), 1), lambda i: X.take(i, 1)),
    "gather_along_axis": (
        lambda v, i: v(X[0, :, 0], np.array(i), 0),
        lambda i: X[0, :, 0].take(i),
    ),
    "gather_nd": (lambda v, i: v(X[0], np.array(i)[:, None]), lambda i: X[0].take(i, 0)),
}


@pytest.mark.parametrize("name", GATHERS)
def test_gathers_out_of_bounds(name):
    run, expected = GATHERS[name]
    old, new = getattr(ops, name), getattr(ops, name + "_ios17")
    np.testing.assert_array_equal(run(old, [-3, 2]), expected([0, 2]))
    for outside in ([-4, 1], [3, 1]):
        with pytest.raises(IndexError, match=rf"index {outside[0]} is out of bounds"):
            run(old, outside)
    for outside in ([-1, 1], [3, 1]):
        with pytest.raises(IndexError, match=rf"index {outside[0]} is out of bounds"):
            run(lambda *a: new(*a, validate_indices=True), outside)
        unchecked = run(new, outside)
        np.testing.assert_array_equal(unchecked, np.where(unchecked == 0, 0, expected([0, 1])))
        assert (unchecked == 0).any()


SCATTERS = {
    "scatter": lambda v, i: v(np.ones(3), np.array(i), np.full(2, 9.0)),
    "scatter_along_axis": lambda v, i: v(np.ones(3), np.array(i), np.full(2, 9.0)),
    "scatter_nd": lambda v, i: v(np.ones(3), np.array(i)[:, None], np.full(2, 9.0)),
}


@pytest.mark.parametrize("name", SCATTERS)
def test_scatters_out_of_bounds(name):
    run = SCATTERS[name]
    old, new = getattr(ops, name), getattr(ops, name + "_ios17")
    np.testing.assert_array_equal(run(old, [-1, 0]), [10, 1, 10])
    with pytest.raises(IndexError, match="index 3"):
        run(old, [3, 0])
    for outside in (-1, 3):
        np.testing.assert_array_equal(run(new, [outside, 0]), [10, 1, 1])
        with pytest.raises(IndexError, match=f"index {outside}"):
            run(lambda *a: new(*a, validate_indices=True), [outside, 0])


def test_gather_with_batch_dimensions_out_of_bounds_reads_zero():
    x = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    result = ops.gather_ios17(x, np.array([[0, 3], [-1, 2]]), 1, batch_dims=1)
    np.testing.assert_array_equal(result, [[1, 0], [0, 6]])
