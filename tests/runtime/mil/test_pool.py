"""Pooling agrees with PyTorch, ceil_mode included."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from palmtop.runtime.mil.ops.pool import avg_pool, l2_pool, max_pool

MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "pad"),
    [
        ((2, 3, 11), [3], [2], [1]),
        ((2, 3, 10), [2], [3], [1]),
        ((1, 2, 12, 9), [3, 2], [2, 3], [1, 1]),
        ((1, 2, 12, 9), [12, 9], [1, 1], [0, 0]),
        ((1, 2, 6, 7, 8), [2, 3, 2], [2, 2, 3], [1, 1, 0]),
    ],
)
def test_max_and_avg_pool_are_pytorchs(shape, kernel, stride, pad, ceil_mode):
    x = normal(*shape)
    options = {"kernel_sizes": np.array(kernel), "strides": stride, "pad_type": "custom", "pad": np.repeat(pad, 2)}
    theirs = MAX[len(kernel)](torch.tensor(x), kernel, stride, pad, ceil_mode=ceil_mode)
    np.testing.assert_array_equal(max_pool(x, ceil_mode=ceil_mode, **options), theirs.numpy())
    for exclude in (False, True):
        theirs = AVG[len(kernel)](
            torch.tensor(x), kernel, stride, pad, ceil_mode=ceil_mode, count_include_pad=not exclude
        )
        ours = avg_pool(x, ceil_mode=ceil_mode, exclude_padding_from_average=exclude, **options)
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


def test_same_lower_pads_before():
    x = np.arange(1, 5, dtype=np.float32).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(avg_pool(x, [2, 2], "same_lower").ravel(), [0.25, 0.75, 1, 2.5])
    np.testing.assert_allclose(avg_pool(x, [2, 2], "same").ravel(), [2.5, 1.5, 1.75, 1])
    np.testing.assert_allclose(max_pool(-x, [2, 2], "same_lower").ravel(), [-1, -1, -1, -1])


def test_l2_pool_is_the_root_of_the_sum_of_squares():
    x = normal(2, 3, 8, 9)
    theirs = F.avg_pool2d(torch.tensor(x) ** 2, (2, 3), (2, 2), (1, 1)) * 6
    ours = l2_pool(x, [2, 3], "custom", strides=[2, 2], pad=[1, 1, 1, 1])
    np.testing.assert_allclose(ours, theirs.sqrt().numpy(), atol=1e-6)


def test_the_input_is_left_alone_and_nan_is_not_lost():
    x = normal(1, 1, 4, 4)
    x[0, 0, 1, 1] = np.nan
    before = x.copy()
    assert np.isnan(max_pool(x, [2, 2], "valid", strides=[2, 2])).ravel().tolist() == [True, False, False, False]
    avg_pool(x, [1, 1], "valid")
    np.testing.assert_array_equal(x, before)
