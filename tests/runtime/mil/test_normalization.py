"""Normalizations agree with PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from palmtop.runtime.mil.ops.normalization import batch_norm, instance_norm, l2_norm, layer_norm, local_response_norm


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def close(ours: np.ndarray, theirs: torch.Tensor) -> None:
    np.testing.assert_allclose(ours, theirs.numpy(), atol=3e-6)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 5, 4), (2, 3, 2, 5, 4)])
def test_batch_norm_and_instance_norm(shape):
    x, gamma, beta, mean, variance = normal(*shape), *(normal(i, 3)[0] for i in (1, 2, 3)), np.abs(normal(4, 3)[0])
    t = [torch.tensor(v) for v in (x, mean, variance, gamma, beta)]
    close(batch_norm(x, mean, variance, gamma, beta, 1e-3), F.batch_norm(*t, eps=1e-3))
    close(batch_norm(x, mean, variance), F.batch_norm(*t[:3]))
    close(instance_norm(x, gamma, beta, 1e-3), F.instance_norm(t[0], weight=t[3], bias=t[4], eps=1e-3))
    close(instance_norm(x), F.instance_norm(t[0]))


@pytest.mark.parametrize("axes", [[-1], [2, 3], [-1, -2], None])
def test_layer_norm_over_trailing_axes(axes):
    x = normal(2, 3, 4, 5)
    last = {1: 3, 2: 2}.get(len(axes or ()), 0)
    gamma, beta = normal(*x.shape[last:]), normal(*x.shape[last:]) + 1
    theirs = F.layer_norm(torch.tensor(x), x.shape[last:], torch.tensor(gamma), torch.tensor(beta), 1e-3)
    close(layer_norm(x, axes, gamma, beta, 1e-3), theirs)


def test_layer_norm_over_leading_axes_takes_gamma_in_the_order_of_the_input():
    x, gamma = normal(2, 3, 4), normal(2, 3)
    flat = x.transpose(2, 0, 1).reshape(4, 6)
    theirs = F.layer_norm(torch.tensor(flat), (6,), torch.tensor(gamma.ravel())).numpy().reshape(4, 2, 3)
    np.testing.assert_allclose(layer_norm(x, [1, 0], gamma), theirs.transpose(1, 2, 0), atol=3e-6)


def test_layer_norm_of_a_constant_row_is_beta_and_of_a_large_offset_is_exact_enough():
    beta = normal(64)
    np.testing.assert_array_equal(layer_norm(np.full((2, 64), 1000, np.float32), [-1], None, beta), [beta, beta])
    x = normal(8, 64) + np.float32(1000)
    wide = x.astype(np.float64)
    exact = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(layer_norm(x, [-1]), exact, atol=1e-4)


def test_l2_norm_is_over_the_last_three_dimensions():
    x = normal(2, 3, 4, 5)
    expected = x / np.sqrt((x**2).sum(axis=(1, 2, 3), keepdims=True) + 0.1)
    np.testing.assert_allclose(l2_norm(x, 0.1), expected, atol=1e-6)
    np.testing.assert_allclose(l2_norm(x[0], 0.1), expected[0], atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 5, 3, 4)])
def test_local_response_norm_is_pytorchs_for_odd_and_even_sizes(shape, size):
    x = normal(*shape) * 3
    theirs = F.local_response_norm(torch.tensor(x), size, alpha=0.3, beta=0.6, k=1.5)
    close(local_response_norm(x, size, 0.3, 0.6, 1.5), theirs)
