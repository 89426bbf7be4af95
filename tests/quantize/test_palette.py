"""Palettes: each weight is a place in a table of a few numbers, and the tables lie where weights are."""

from __future__ import annotations

import pytest
import torch
from palmtop.quantize.palette import find_palette
from palmtop.quantize.scheme import Scheme
from palmtop.quantize.weights import quantize

from .test_weights import inputs, matrix, output_error


def palette(bits: int, granularity: str = "tensor", block: int | None = None) -> Scheme:
    return Scheme(bits, granularity, block, form="palette")


@pytest.mark.parametrize(("bits", "error"), [(8, 0.0075), (6, 0.027), (4, 0.1), (2, 0.36)])
@pytest.mark.parametrize(
    ("granularity", "block", "groups"), [("tensor", None, 1), ("channel", None, 64), ("block", 16, 4)]
)
def test_every_width_gives_normal_weights_back_about_as_well_as_can_be(bits, error, granularity, block, groups):
    """For many numbers N the least possible is 1.65 / N (Panter and Dite, 1951)."""
    weight = matrix(64, 400)
    made = quantize(weight, palette(bits, granularity, block), (64, 400))
    assert made.palette.shape == (groups, 2**bits)
    assert made.integers.dtype == torch.uint8
    assert int(made.integers.max()) < 2**bits
    assert float((made.dequantize() - weight).norm() / weight.norm()) < error


def test_each_weight_is_the_nearest_number_of_its_table():
    weight = matrix(12, 50)
    made = quantize(weight, palette(4, "block", 3), (12, 50))
    tables = made.palette.repeat_interleave(3, 0)
    best = (weight.unsqueeze(-1) - tables.unsqueeze(1)).abs().amin(-1)
    assert torch.allclose((made.dequantize() - weight).abs(), best, atol=1e-7)
    assert bool((made.palette.diff(dim=1) >= 0).all())


def test_as_many_numbers_as_there_are_weights_are_those_weights():
    weight = torch.tensor([-1.0, 0.0, 0.25, 3.0]).repeat(6, 5)
    for granularity in ("tensor", "channel"):
        assert torch.equal(quantize(weight, palette(2, granularity), (6, 20)).dequantize(), weight)
        assert torch.equal(quantize(weight, palette(8, granularity), (6, 20)).dequantize(), weight)


def test_zero_weights_stay_zero_and_constants_stay_themselves():
    for value in (0.0, 0.3):
        weight = torch.full((8, 32), value)
        for hessian in (None, torch.eye(32)):
            made = quantize(weight, palette(4), (8, 32), hessian=hessian)
            assert torch.allclose(made.dequantize(), weight)


def test_important_columns_get_the_finer_numbers():
    weight = matrix(32, 64)
    importance = torch.ones(64)
    importance[:8] = 1000
    plain = find_palette(weight, 32, 3)
    weighted = find_palette(weight, 32, 3, importance)
    errors = [(entry.values(entry.integers(weight)) - weight)[:, :8].norm() for entry in (plain, weighted)]
    assert errors[1] < errors[0]


def test_gptq_keeps_a_layers_output_better_than_the_nearest_number():
    weight, x = matrix(), inputs(96)
    for scheme in (palette(4), palette(2, "block", 8)):
        plain = quantize(weight, scheme, (24, 96)).dequantize()
        kept = quantize(weight, scheme, (24, 96), hessian=x.t() @ x).dequantize()
        assert output_error(weight, kept, x) < 0.75 * output_error(weight, plain, x)


def test_a_palette_is_better_than_integers_of_as_many_bits_a_tensor():
    weight = matrix(64, 400)
    weight[0, 0] = 2.0  # one large weight stretches a grid of equal steps
    errors = [
        (quantize(weight, scheme, (64, 400)).dequantize() - weight).norm()
        for scheme in (Scheme(4, "tensor"), palette(4))
    ]
    assert errors[1] < 0.6 * errors[0]


def test_rows_that_no_group_divides_share_one_table():
    made = quantize(matrix(10, 64), palette(4, "block", 4), (10, 64))
    assert made.scheme == palette(4)
    assert made.palette.shape == (1, 16)


def test_layouts_and_bytes():
    weight = matrix()
    made = quantize(weight, palette(4), (96, 24), transposed=True)
    assert torch.equal(made.dequantize(), quantize(weight, palette(4), (24, 96)).dequantize().t())
    assert quantize(weight, palette(4), (24, 8, 4, 3)).dequantize().shape == (24, 8, 4, 3)
    assert made.bytes == 24 * 96 // 2 + 16 * 2
