"""The measure of parity sees what matters, whatever the scale, and nothing else."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from palmtop.runtime.parity import Agreement, Bound, Comparison, Noise, bound_for

MODERATE = st.floats(-1e3, 1e3, width=32)
VECTORS = arrays.arrays(np.float32, st.integers(1, 30), elements=MODERATE)
SEEDS = st.integers(0, 2**32 - 1)


def measured(*pairs, bound: Bound | None = None):
    """The measure over cases of (expected, actual)."""
    comparison = Comparison("logits")
    for index, (expected, actual) in enumerate(pairs):
        comparison.add(f"case {index}", np.shape(expected), np.asarray(expected), np.asarray(actual))
    return comparison.measure(bound)


# --- errors are relative to the reference's own scale ---------------------------------------------------------------


@given(VECTORS, VECTORS, st.integers(-60, 60))
def test_the_measure_does_not_depend_on_the_scale(expected, error, power):
    assume(np.any(expected))
    expected = expected.astype(np.float64)
    actual = expected + np.resize(error.astype(np.float64), expected.shape)
    one = measured((expected, actual))
    other = measured((expected * 2.0**power, actual * 2.0**power))
    assert other.max_error == pytest.approx(one.max_error, rel=1e-12)
    assert other.rms_error == pytest.approx(one.rms_error, rel=1e-12)
    assert other.cosine == pytest.approx(one.cosine, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-45, 1e-12, 1.0, 1e12, 1e38, 1e300])
def test_a_wrong_output_is_seen_at_any_scale(scale):
    expected = np.array([1.0, -2.0, 3.0]) * scale
    worst = bound_for("fp16", Noise(1.0, 1.0))
    assert not measured((expected, expected[::-1]), bound=worst).passed
    assert not measured((expected, np.zeros(3)), bound=worst).passed
    assert not measured((expected, -expected), bound=worst).passed
    assert measured((expected, expected), bound=Bound(0.0, 0.0)).passed


def test_an_all_wrong_tiny_output_fails_where_a_fixed_tolerance_passes():
    expected, actual = np.full(8, 3e-6), np.full(8, -3e-6)
    assert np.allclose(expected, actual, atol=1e-5)
    assert not measured((expected, actual), bound=bound_for("fp32", Noise(1e-4, 1e-5))).passed


def test_a_harmless_difference_of_a_large_output_passes_where_a_fixed_tolerance_fails():
    expected = np.linspace(-4000, 4000, 50)
    actual = expected + 3e-3
    assert not np.allclose(expected, actual, rtol=0, atol=1e-5)
    assert measured((expected, actual), bound=bound_for("fp32", Noise(2e-6, 3e-7))).passed


def test_one_wrong_value_among_a_million_is_seen():
    expected = np.random.default_rng(0).normal(size=1_000_000)
    actual = expected.copy()
    actual[777_777] += 1.0
    found = measured((expected, actual), bound=bound_for("fp32", Noise(1e-5, 1e-6)))
    assert found.cosine > 0.999999
    assert not found.passed


def test_an_output_of_zeros_is_compared_absolutely():
    assert measured((np.zeros(3), np.zeros(3)), bound=Bound(0, 0)).passed
    found = measured((np.zeros(3), np.array([0, 0, 0.5])), bound=Bound(1e-2, 1e-3))
    assert (found.max_error, found.cosine, found.passed) == (0.5, 0.0, False)


@given(VECTORS)
def test_an_output_is_equal_to_itself(values):
    found = measured((values, values), bound=Bound(0.0, 0.0))
    assert (found.max_error, found.rms_error, found.passed) == (0.0, 0.0, True)
    assert found.snr_db == math.inf


@given(st.lists(st.tuples(VECTORS, SEEDS), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_cases_does_not_matter(cases, random):
    pairs = [(values, values + np.random.default_rng(seed).normal(size=values.shape)) for values, seed in cases]
    shuffled = random.sample(pairs, len(pairs))
    one, other = measured(*pairs), measured(*shuffled)
    assert (one.max_error, one.rms_error, one.cosine) == (other.max_error, other.rms_error, other.cosine)
    assert one.max_error == max(measured(pair).max_error for pair in pairs)


def test_the_worst_case_is_named():
    good = (np.ones(3), np.ones(3) * 1.001)
    found = measured(good, (np.ones(3), np.ones(3) * 1.5), good, bound=Bound(1e-2, 1e-3))
    assert found.worst_case == "case 1"
    assert "case 1" in found.describe()
    assert "max error 0.5" in found.describe()
    assert "allowed 0.01" in found.describe()


def test_the_error_that_is_relative_to_one_cases_scale_is_not_hidden_by_a_large_case():
    small = (np.full(4, 1e-3), np.full(4, 2e-3))
    large = (np.full(4, 1e6), np.full(4, 1e6))
    assert not measured(large, small, large, bound=Bound(0.5, 5e-2)).passed


# --- NaN and infinity -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("first", [True, False])
def test_one_value_that_is_not_finite_is_fatal(value, first):
    good = (np.ones(5), np.ones(5))
    bad = (np.ones(5), np.array([1, 1, value, 1, 1]))
    found = measured(*((bad, good) if first else (good, bad)), bound=Bound(math.inf, math.inf))
    assert found.nonfinite == 1
    assert not found.passed
    assert found.worst_case == ("case 0" if first else "case 1")
    assert "NaN or infinite" in found.describe()


def test_what_is_not_finite_in_the_reference_does_not_count():
    expected = np.array([1.0, -np.inf, np.nan, 2.0])
    assert measured((expected, np.array([1.0, -30000.0, 7.0, 2.0])), bound=Bound(0, 0)).passed
    assert not measured((expected, np.array([np.nan, 0, 0, 2.0])), bound=Bound(1, 1)).passed


def test_a_reference_without_a_finite_value_proves_nothing():
    found = measured((np.full(3, np.nan), np.ones(3)), bound=Bound(1, 1))
    assert not found.passed
    assert "no case could be compared" in found.describe()


def test_no_cases_prove_nothing():
    assert not Comparison("logits").measure(Bound(1, 1)).passed


def test_outputs_of_other_sizes_are_never_compared():
    with pytest.raises(ValueError, match="3 expected values against 1"):
        measured((np.ones(3), np.ones(1)))


@given(VECTORS, SEEDS)
def test_a_measure_is_json_whatever_it_measured(values, seed):
    actual = values + np.random.default_rng(seed).choice([0.0, 1e-3, np.nan, np.inf], size=values.shape)
    json.dumps(measured((values, actual), bound=Bound(1e-2, math.inf)).to_json(), allow_nan=False)


# --- bounds ---------------------------------------------------------------------------------------------------------


def layers(seed: int, depth: int, width: int):
    generator = np.random.default_rng(seed)
    weights = [generator.normal(size=(width, width)) / math.sqrt(width) for _ in range(depth)]
    return generator.normal(size=(6, width)), weights


def network(values: np.ndarray, weights: list[np.ndarray], order: np.ndarray | None = None) -> np.ndarray:
    """Layers with residuals and tanh; `order` sums each product in another order, in blocks."""
    for weight in weights:
        if order is None:
            product = values @ weight
        else:
            blocks = np.array_split(order, 5)
            product = sum((values[:, block] @ weight[block] for block in blocks), np.zeros_like(values))
        values = np.tanh(product) + values
    return values


@given(SEEDS, st.integers(1, 12), st.integers(8, 96))
def test_another_order_of_summation_passes(seed, depth, width):
    values, weights = layers(seed, depth, width)
    exact = network(values, weights)
    half = [weight.astype(np.float32) for weight in weights]
    reference = network(values.astype(np.float32), half)
    exact = network(values.astype(np.float32).astype(np.float64), [weight.astype(np.float64) for weight in half])
    noise = Comparison("x")
    noise.add("x", exact.shape, exact, reference)
    order = np.random.default_rng(seed).permutation(width)
    other = network(values.astype(np.float32), half, order)
    assert other.dtype == np.float32
    assert measured((reference, other), bound=bound_for("fp32", noise.noise())).passed


@given(SEEDS, st.integers(1, 12), st.integers(8, 96))
def test_a_damaged_weight_does_not_pass(seed, depth, width):
    values, weights = layers(seed, depth, width)
    reference = network(values, weights)
    damaged = [weight.copy() for weight in weights]
    damaged[0][0, 0] += 0.05
    bound = bound_for("fp32", Noise(2e-6, 3e-7))
    assert not measured((reference, network(values, damaged)), bound=bound).passed


@given(st.floats(0, 10), st.floats(0, 10), st.sampled_from(["fp32", "fp16", "int8"]))
def test_bounds_are_never_loose_enough_for_another_model(largest, rms, precision):
    bound = bound_for(precision, Noise(largest, rms))
    assert bound.rms_error <= (1e-3 if precision == "fp32" else 5e-2)
    assert bound.max_error <= (1e-2 if precision == "fp32" else 0.5)
    unrelated = np.random.default_rng(0).normal(size=(2, 500))
    assert not measured((unrelated[0], unrelated[1]), bound=bound).passed


@given(st.floats(0, 1e-3), st.floats(0, 1e-3))
def test_a_noisier_model_and_a_coarser_precision_get_no_tighter_bound(one, more):
    tight, loose = bound_for("fp32", Noise(one, one)), bound_for("fp32", Noise(one + more, one + more))
    assert tight.max_error <= loose.max_error
    assert tight.rms_error <= loose.rms_error
    assert tight.rms_error <= bound_for("fp16", Noise(one, one)).rms_error


@given(SEEDS)
def test_rounding_to_fp16_passes_as_fp16_and_not_as_fp32(seed):
    expected = np.random.default_rng(seed).normal(size=200)
    rounded = expected.astype(np.float16).astype(np.float64)
    noise = Noise(2e-6, 3e-7)
    assert measured((expected, rounded), bound=bound_for("fp16", noise)).passed
    assert not measured((expected, rounded), bound=bound_for("fp32", noise)).passed


# --- agreement ------------------------------------------------------------------------------------------------------


def agreed(expected, actual, tolerance: float) -> Agreement:
    agreement = Agreement()
    agreement.add(np.atleast_2d(expected).astype(float), np.atleast_2d(actual).astype(float), tolerance)
    return agreement


def test_another_decision_fails_where_the_margin_is_wider_than_the_allowed_error():
    found = agreed([[3.0, 1.0, 0.0]], [[1.0, 1.5, 0.0]], tolerance=0.1)
    assert (found.total, found.same, found.decided, found.decided_same) == (1, 0, 1, 0)
    assert not found.passed


def test_another_decision_passes_where_the_allowed_error_bridges_the_margin():
    found = agreed([[1.0, 0.99, 0.0]], [[0.99, 1.0, 0.0]], tolerance=0.01)
    assert (found.total, found.same, found.decided) == (1, 0, 0)
    assert found.passed


@given(st.lists(st.lists(MODERATE, min_size=4, max_size=4), min_size=1, max_size=10), SEEDS, st.floats(1e-6, 10))
def test_errors_within_the_tolerance_never_change_a_decided_answer(rows, seed, tolerance):
    expected = np.array(rows)
    error = np.random.default_rng(seed).uniform(-tolerance, tolerance, expected.shape) * 0.999
    assert agreed(expected, expected + error, tolerance).passed


def test_counts_add_up_over_calls():
    found = agreed([[2.0, 0.0]], [[2.0, 0.0]], 0.1)
    found.add(np.array([[0.0, 2.0], [5.0, 1.0]]), np.array([[0.0, 2.0], [1.0, 5.0]]), 0.1)
    assert (found.total, found.same, found.decided, found.decided_same) == (3, 2, 3, 2)
    assert found.to_json() == {"same": 2, "total": 3, "decided": 3, "decided_same": 2, "passed": False}


def test_a_single_score_is_decided_by_its_sign():
    assert agreed([[0.5]], [[0.4]], 0.01).same == 1
    assert not agreed([[0.5]], [[-0.5]], 0.01).passed


def test_nan_is_no_answer():
    assert not agreed([[0.0, 2.0, 1.0]], [[0.0, np.nan, 1.0]], 0.1).passed


def test_rows_that_the_reference_does_not_answer_do_not_count():
    assert agreed([[np.nan, 1.0]], [[5.0, 1.0]], 0.1).total == 0
