"""Random operations have the right distribution; a seed makes them repeat."""

import numpy as np
import pytest
from palmtop.runtime.mil.ops.random import random_bernoulli, random_categorical, random_normal, random_uniform

DRAWS = {
    "bernoulli": lambda seed: random_bernoulli(np.array([40, 50]), 0.3, seed),
    "normal": lambda seed: random_normal(np.array([40, 50]), 2.0, 3.0, seed),
    "uniform": lambda seed: random_uniform(np.array([40, 50]), -1.0, 2.0, seed),
    "categorical": lambda seed: random_categorical(np.log([[1, 2, 1]] * 40).astype(np.float32), size=50, seed=seed),
}
MOMENTS = {"bernoulli": (0.3, 0.458), "normal": (2, 3), "uniform": (0.5, 0.866), "categorical": (1, 0.707)}


@pytest.mark.parametrize("name", DRAWS)
def test_a_seed_repeats_and_its_absence_does_not(name):
    draw = DRAWS[name]
    np.testing.assert_array_equal(draw(7), draw(7))
    assert (draw(7) != draw(8)).any()
    assert (draw(-1) != draw(-1)).any()


@pytest.mark.parametrize("name", DRAWS)
def test_mean_and_deviation(name):
    drawn = DRAWS[name](7)
    mean, deviation = MOMENTS[name]
    assert drawn.shape == (40, 50)
    assert drawn.dtype == np.float32
    assert drawn.mean() == pytest.approx(mean, abs=4 * deviation / 2000**0.5)
    assert drawn.std() == pytest.approx(deviation, rel=0.1)


def test_limits():
    assert random_bernoulli([9], 1.0).tolist() == [1] * 9
    assert random_bernoulli([9], 0.0).tolist() == [0] * 9
    assert random_uniform([3], 1.0, 1.0).tolist() == [1] * 3
    drawn = random_uniform([10000], 5.0, 6.0, 1)
    assert drawn.min() >= 5
    assert drawn.max() < 6
    assert random_categorical(np.array([0, 0, 5], np.float32), "probs", 4).tolist() == [2] * 4
