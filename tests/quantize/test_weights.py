"""Rounded weights stay close to the weights, and to what their layer gives; integers are what every kernel takes."""

from __future__ import annotations

import itertools

import pytest
import torch
from palmtop.quantize.scheme import Scheme
from palmtop.quantize.weights import PAIR, fitting, quantize

INT8, INT4 = Scheme(8), Scheme(4, "block", 32)
LINEAR = [
    Scheme(bits, granularity, 32 if granularity == "block" else None, symmetric, activations=activations)
    for bits, granularity, symmetric, activations in itertools.product(
        (8, 4), ("tensor", "channel", "block"), (True, False), ("none", "dynamic")
    )
]
ROUNDED = Scheme(8, activations="dynamic")


def matrix(rows: int = 24, columns: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1


def inputs(columns: int, rows: int = 400, seed: int = 1) -> torch.Tensor:
    """Correlated, as activations are: a few directions carry most of them, and a few channels are large."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(rows, max(columns // 6, 1), generator=generator)
    mixed = few @ torch.randn(few.shape[1], columns, generator=generator)
    large = torch.ones(columns)
    large[:: max(columns // 4, 1)] = 8
    return (mixed + 0.1 * torch.randn(rows, columns, generator=generator)) * large


def output_error(weight: torch.Tensor, stored: torch.Tensor, x: torch.Tensor) -> float:
    return float((x @ (weight - stored).t()).norm() / (x @ weight.t()).norm())


def assert_in_range(made) -> None:
    high = 2 ** (made.scheme.bits - 1) - 1
    low = -high if made.scheme.bits == 8 else -high - 1
    assert made.integers.dtype == torch.int8
    assert low <= int(made.integers.min())
    assert int(made.integers.max()) <= high
    assert bool((made.scales > 0).all())
    assert (made.zero_points is None) == made.scheme.symmetric
    if made.zero_points is not None:
        assert made.zero_points.shape == made.scales.shape
        assert made.zero_points.dtype == torch.int8


# --- to nearest ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", LINEAR, ids=str)
@pytest.mark.parametrize("hessian", [False, True], ids=["nearest", "gptq"])
def test_every_linear_scheme_gives_the_weight_back_to_its_number_of_bits(scheme, hessian):
    weight = matrix()
    made = quantize(weight, scheme, tuple(weight.shape), hessian=torch.eye(96) * 400 if hessian else None)
    assert_in_range(made)
    assert made.scales.shape == (24, 3 if scheme.granularity == "block" else 1)
    error = float((made.dequantize() - weight).norm() / weight.norm())
    assert error < {8: 0.02, 4: 0.16}[scheme.bits]


def test_no_weight_within_the_range_is_further_than_half_a_step_away():
    made = quantize(matrix(), Scheme(8, "block", 32, symmetric=False), (24, 96))
    steps = made.scales.repeat_interleave(32, 1)
    inside = made.integers.abs() < 127
    assert float(((made.dequantize() - matrix()).abs() / steps)[inside].max()) <= 0.5 + 1e-4


def test_a_tensor_has_one_scale_and_one_zero_point():
    made = quantize(matrix(), Scheme(8, "tensor", symmetric=False), (24, 96))
    assert len(made.scales.unique()) == len(made.zero_points.unique()) == 1


def test_zero_points_pay_where_weights_lie_to_one_side():
    weight = matrix().abs() + 0.2
    errors = [
        float((quantize(weight, Scheme(4, "channel", symmetric=symmetric), (24, 96)).dequantize() - weight).norm())
        for symmetric in (True, False)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_a_positive_matrix_with_zero_points_and_rounded_inputs_keeps_its_large_weights():
    """The bound on neighbours is for kernels that take symmetric weights; here it would cut half of the range off."""
    weight = matrix().abs() + 0.2
    made = quantize(weight, Scheme(8, symmetric=False, activations="dynamic"), (24, 96))
    assert float((made.dequantize() - weight).norm() / weight.norm()) < 0.005


@pytest.mark.parametrize("hessian", [None, torch.eye(96)], ids=["nearest", "gptq"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scheme_bits", [8, 4])
def test_all_zero_weights_and_rows_stay_zero(scheme_bits, symmetric, hessian):
    weight = matrix()
    weight[3] = 0
    for value in (weight, torch.zeros_like(weight)):
        made = quantize(value, Scheme(scheme_bits, "block", 32, symmetric), (24, 96), hessian=hessian)
        assert_in_range(made)
        assert not made.dequantize()[value.abs().amax(1) == 0].any()


def test_one_column_one_row_and_constant_columns():
    for weight in (matrix(24, 1), matrix(1, 96), torch.full((24, 96), 0.3), torch.full((24, 96), -1e-30)):
        for scheme in (INT8, ROUNDED, Scheme(4), Scheme(8, symmetric=False)):
            for hessian in (None, torch.ones(weight.shape[1], weight.shape[1])):
                made = quantize(weight, scheme, tuple(weight.shape), hessian=hessian)
                assert_in_range(made)
                assert float((made.dequantize() - weight).abs().max()) <= (0.2 if scheme.bits == 4 else 0.02) * float(
                    weight.abs().max()
                )


def test_blocks_become_shorter_until_they_divide_a_row_and_rows_where_none_does():
    assert fitting(Scheme(4, "block", 128), 96).block == 32
    assert fitting(Scheme(4, "block", 128), 48).block == 16
    assert fitting(Scheme(4, "block", 32, activations="dynamic"), 40) == Scheme(4, activations="dynamic")
    assert fitting(INT8, 40) == INT8


def test_scales_of_4_bit_blocks_have_eight_significant_bits():
    for symmetric in (True, False):
        for hessian in (None, torch.eye(96)):
            made = quantize(matrix(), Scheme(4, "block", 32, symmetric), (24, 96), hessian=hessian)
            assert torch.equal(made.scales.bfloat16().float(), made.scales)


def test_transposed_weights_and_kernels_come_back_in_their_own_layout():
    weight = matrix()
    made = quantize(weight, INT8, (96, 24), transposed=True)
    assert torch.equal(made.dequantize(), quantize(weight, INT8, (24, 96)).dequantize().t())
    assert quantize(weight, INT8, (24, 8, 4, 3)).dequantize().shape == (24, 8, 4, 3)


def test_the_same_matrix_gives_the_same_integers():
    hessian = inputs(96).t() @ inputs(96)
    made = [quantize(matrix(), INT4, (24, 96), hessian=hessian) for _ in range(2)]
    assert torch.equal(made[0].integers, made[1].integers)
    assert torch.equal(made[0].scales, made[1].scales)


@pytest.mark.parametrize(
    ("scheme", "bytes"),
    [
        (INT8, 24 * 96 + 24 * 4),
        (INT4, 24 * 48 + 72 * 4),
        (Scheme(8, "block", 32, symmetric=False), 24 * 96 + 72 * 5),
    ],
)
def test_bytes_are_integers_scales_and_zero_points(scheme, bytes):
    assert quantize(matrix(), scheme, (24, 96)).bytes == bytes


# --- neighbours ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hessian", [False, True], ids=["nearest", "gptq"])
@pytest.mark.parametrize("scheme", [ROUNDED, Scheme(8, "tensor", activations="dynamic")], ids=str)
@pytest.mark.parametrize("columns", [96, 97])
def test_no_two_neighbours_can_overflow_a_kernel_that_adds_in_16_bits(scheme, hessian, columns):
    """An 8-bit input times two neighbours: 255 * 128 is the most that 16 bits hold."""
    for weight in (matrix(columns=columns), torch.full((8, columns), 0.7), -matrix(8, columns).abs()):
        x = inputs(columns)
        made = quantize(weight, scheme, tuple(weight.shape), hessian=x.t() @ x if hessian else None)
        pairs = made.integers[:, : columns // 2 * 2].int()
        assert int((pairs[:, 0::2] + pairs[:, 1::2]).abs().max()) <= PAIR
        assert float((made.dequantize() - weight).norm() / weight.norm()) < 0.03


def test_without_rounded_inputs_neighbours_use_the_whole_range():
    made = quantize(torch.full((8, 96), 0.7), INT8, (8, 96))
    assert int(made.integers.min()) == 127


# --- GPTQ ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme", [INT4, Scheme(4), Scheme(4, "block", 32, symmetric=False), Scheme(4, "tensor"), ROUNDED], ids=str
)
def test_gptq_keeps_a_layers_output_better_than_rounding_to_nearest(scheme):
    weight, seen, unseen = matrix(), inputs(96), inputs(96)[200:] * 0.9
    plain = quantize(weight, scheme, (24, 96)).dequantize()
    kept = quantize(weight, scheme, (24, 96), hessian=seen.t() @ seen).dequantize()
    assert output_error(weight, kept, unseen) < 0.75 * output_error(weight, plain, unseen)


def test_gptq_with_inputs_that_have_nothing_in_common_is_as_good_as_nearest():
    weight = matrix()
    x = torch.randn(4000, 96, generator=torch.Generator().manual_seed(2))
    plain = quantize(weight, INT4, (24, 96)).dequantize()
    kept = quantize(weight, INT4, (24, 96), hessian=x.t() @ x).dequantize()
    assert output_error(weight, kept, x) < 1.05 * output_error(weight, plain, x)


def test_channels_that_calibration_never_saw_keep_their_weights():
    weight, x = matrix(), inputs(96)
    x[:, 10:20] = 0
    made = quantize(weight, INT4, (24, 96), hessian=x.t() @ x).dequantize()
    dead = (made - weight)[:, 10:20]
    assert float(dead.norm() / weight[:, 10:20].norm()) < 0.2


def test_inputs_of_one_row_or_none_or_too_large_to_square_are_no_obstacle():
    weight = matrix()
    one = inputs(96, rows=1)
    for hessian in (one.t() @ one, torch.zeros(96, 96), torch.full((96, 96), torch.inf)):
        made = quantize(weight, INT4, (24, 96), hessian=hessian)
        assert_in_range(made)
        assert float((made.dequantize() - weight).norm() / weight.norm()) < 0.3


def test_blocks_longer_than_a_stride_and_strides_that_end_early():
    weight, x = matrix(8, 320), inputs(320, rows=900)
    for scheme in (Scheme(4), Scheme(4, "block", 64)):
        plain = quantize(weight, scheme, (8, 320)).dequantize()
        kept = quantize(weight, scheme, (8, 320), hessian=x.t() @ x).dequantize()
        assert output_error(weight, kept, x) < 0.75 * output_error(weight, plain, x)
