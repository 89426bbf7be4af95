"""Rounding, elementary functions and compressed weights are exact to the bit, or to a stated number of last places."""

import math

import numpy as np
import pytest
from palmtop.runtime.errors import DamagedError
from palmtop.runtime.mil import Program, mathematics
from palmtop.runtime.mil.blobs import unpack
from palmtop.runtime.mil.ops import constexpr, quantization
from palmtop.runtime.mil.rounding import round_fp16
from palmtop.runtime.mil.tables import tabulated

from .build import Builder, literal, pack

ALL_HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
FINITE = ALL_HALVES[np.isfinite(ALL_HALVES)]


def same_bits(a, b):
    np.testing.assert_array_equal(np.asarray(a, np.float32).view(np.uint32), np.asarray(b, np.float32).view(np.uint32))


def test_every_half_is_its_own_rounding():
    same_bits(round_fp16(FINITE), FINITE)


def test_rounding_is_that_of_ieee_754_at_every_tie_and_beside_it():
    positive = np.sort(FINITE[FINITE >= 0])
    ties = (positive[:-1] + positive[1:]) / 2  # exact in fp32
    probes = np.concatenate([ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))])
    for x in (probes, -probes):
        same_bits(round_fp16(x), x.astype(np.float16).astype(np.float32))


def test_rounding_of_huge_tiny_and_special_values():
    x = np.tile(
        np.array([65519.996, 65520, 1e30, -65520, np.inf, -np.inf, np.nan, 2**-25, 2**-24, -0.0], np.float32), 10
    )
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(round_fp16(x), x.astype(np.float16).astype(np.float32))
    assert np.signbit(round_fp16(x)[9::10]).all()


@pytest.mark.parametrize("shape", [(), (1,), (63,), (3, 50_001), (0, 4)])
def test_rounding_keeps_the_shape_and_leaves_its_input(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 10
    x = np.asarray(x, np.float32)
    kept = x.copy()
    y = round_fp16(x)
    assert y.shape == shape
    np.testing.assert_array_equal(y, x.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(x, kept)


def test_rounding_of_a_transposed_array():
    x = np.random.default_rng(0).standard_normal((70, 90)).astype(np.float32).T
    np.testing.assert_array_equal(round_fp16(x), x.astype(np.float16).astype(np.float32))


SPREAD = np.concatenate(
    [
        np.linspace(-6, 6, 200_001),
        np.logspace(-30, 1, 20_001),
        -np.logspace(-30, 1, 20_001),
        [0.0, 1.0, -1.0, 3.95, np.inf, -np.inf],
    ]
).astype(np.float32)


def last_places(value, exact):
    return np.abs(value.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)


def test_erf_is_right_to_one_and_a_half_last_places():
    exact = np.array([math.erf(float(v)) for v in SPREAD])
    assert last_places(mathematics.erf(SPREAD), exact).max() < 1.5
    assert np.isnan(mathematics.erf(np.array([np.nan, 1.0, 5.0], np.float32))[0])


def test_gelu_is_right_to_two_last_places_where_it_is_positive_and_to_three_of_1_elsewhere():
    x = SPREAD[np.isfinite(SPREAD)]
    exact = np.array([0.5 * float(v) * (1 + math.erf(float(v) / math.sqrt(2))) for v in x])
    y = mathematics.gelu(x)
    assert last_places(y[x > 0], exact[x > 0]).max() < 2
    assert np.abs(y - exact)[x < 0].max() < 3 * 2.0**-23


def test_sigmoid_and_softplus_do_not_overflow():
    x = np.array([-1e4, -100, 0, 100, 1e4], np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(mathematics.sigmoid(x), [0, 0, 0.5, 1, 1], atol=1e-43)
    np.testing.assert_allclose(mathematics.softplus(x), [0, 0, np.log(2), 100, 1e4], rtol=1e-6, atol=1e-43)


@pytest.mark.parametrize("function", [mathematics.gelu, mathematics.sigmoid, mathematics.erf])
def test_tables_give_what_the_function_rounded_gives(function):
    with np.errstate(all="ignore"):
        looked_up = tabulated(lambda x: function(x))(x=ALL_HALVES)
        np.testing.assert_array_equal(looked_up, round_fp16(function(ALL_HALVES)))


def test_a_table_is_used_in_a_program_only_where_values_are_halves(tmp_path):
    b = Builder()
    b.input("x", "fp16", (8192,))
    b.op("tanh", ("fp16", (8192,)), x="x", name="y")
    program = Program.load(b.save(tmp_path / "m.mlpackage", "y"))
    x = np.random.default_rng(0).standard_normal(8192).astype(np.float32)
    halves = x.astype(np.float16)
    np.testing.assert_array_equal(program.predict({"x": x})["y"], np.tanh(halves.astype(np.float32)).astype(np.float16))
    np.testing.assert_array_equal(program.predict({"x": x}, precision="fp32")["y"], np.tanh(x))


@pytest.mark.parametrize("dtype", ["uint1", "uint2", "uint3", "uint4", "uint6", "int4"])
@pytest.mark.parametrize("count", [1, 7, 8, 100])
def test_packed_values_come_back(dtype, count):
    bits = int(dtype[-1])
    low = -(2 ** (bits - 1)) if dtype.startswith("int") else 0
    values = np.random.default_rng(bits).integers(low, low + 2**bits, count)
    np.testing.assert_array_equal(unpack(np.frombuffer(pack(values, dtype), np.uint8), dtype, count), values)


RNG = np.random.default_rng(3)


@pytest.mark.parametrize(("dtype", "low", "high"), [("int4", -8, 8), ("uint4", 0, 16), ("int8", -128, 128)])
@pytest.mark.parametrize("blocks", [(1, 1), (6, 1), (3, 4), (6, 8)])
def test_blockwise_weights(tmp_path, dtype, low, high, blocks):
    data = RNG.integers(low, high, (6, 8))
    scale = RNG.standard_normal(blocks).astype(np.float16)
    offset = RNG.integers(low, high, blocks)
    b = Builder()
    values = b.blob(data.astype(np.uint8 if dtype[0] == "u" else np.int8), dtype)
    b.input("x", "fp16", (6, 8))
    shift = b.blob(offset.astype(np.uint8 if dtype[0] == "u" else np.int8), dtype)
    b.op("constexpr_blockwise_shift_scale", ("fp16", (6, 8)), data=values, scale=b.blob(scale), offset=shift, name="w")
    b.op("add", ("fp16", (6, 8)), x="x", y="w", name="y")
    y = Program.load(b.save(tmp_path / "m.mlpackage", "y")).predict({"x": np.zeros((6, 8))})["y"]
    wide = [np.repeat(np.repeat(a, 6 // blocks[0], 0), 8 // blocks[1], 1) for a in (scale, offset)]
    expected = ((data - wide[1]).astype(np.float32) * wide[0].astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(y, expected)


def test_affine_weights_per_channel_as_attributes(tmp_path):
    """Opsets of iOS 16 and 17 keep the inputs of a constexpr as attributes."""
    b = Builder(opset="CoreML6")
    data, scale = RNG.integers(-128, 128, (4, 16)).astype(np.int8), RNG.standard_normal(4).astype(np.float16)
    zero = RNG.integers(-5, 5, 4).astype(np.int8)
    b.input("x", "fp16", (4, 16))
    b.op("constexpr_affine_dequantize", ("fp16", (4, 16)), name="w")
    attributes = b.block.operations[-1].attributes
    for key, value in (("quantized_data", data), ("scale", scale), ("zero_point", zero)):
        attributes[key].CopyFrom(b.blob(value))
    attributes["axis"].CopyFrom(literal(0))
    b.op("add", ("fp16", (4, 16)), x="x", y="w", name="y")
    y = Program.load(b.save(tmp_path / "m.mlpackage", "y")).predict({"x": np.zeros((4, 16))})["y"]
    expected = (data.astype(np.float32) - zero[:, None]) * scale.astype(np.float32)[:, None]
    np.testing.assert_array_equal(y, expected.astype(np.float16))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_grouped_palettes(bits):
    lut = RNG.standard_normal((2, 1, 2**bits, 1)).astype(np.float32)
    indices = RNG.integers(0, 2**bits, (4, 8)).astype(np.uint8)
    expected = np.stack([lut[i // 2, 0, indices[i], 0] for i in range(4)])
    np.testing.assert_array_equal(constexpr.lut_to_dense(indices, lut), expected)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_palettes_of_vectors(axis):
    lut = RNG.standard_normal((1, 1, 4, 2)).astype(np.float32)
    indices = RNG.integers(0, 4, (3, 5)).astype(np.uint8)
    y = constexpr.lut_to_dense(indices, lut, vector_axis=axis)
    for i in range(3):
        for j in range(5):
            place = (slice(2 * i, 2 * i + 2), j) if axis == 0 else (i, slice(2 * j, 2 * j + 2))
            np.testing.assert_array_equal(y[place], lut[0, 0, indices[i, j]])


def test_packed_palette_of_ios16():
    lut, indices = np.array([0, 10, 20, 30], np.float32), np.array([3, 0, 2, 1, 3], np.uint8)
    packed = np.frombuffer(pack(indices, "uint2"), np.uint8)
    y = constexpr.lut_to_dense_ios16(packed, lut, np.array([5], np.uint32))
    assert y.tolist() == [30, 0, 20, 10, 30]


def test_sparse_weights_and_their_combinations():
    mask = np.array([[1, 0, 1], [0, 1, 1]], np.uint8)
    values = np.array([5, 6, 7, 8], np.float32)
    dense = [[5, 0, 6], [0, 7, 8]]
    np.testing.assert_array_equal(constexpr.sparse_to_dense(values, mask), dense)
    packed = np.packbits(mask.reshape(-1), bitorder="little")
    np.testing.assert_array_equal(constexpr.sparse_to_dense_ios16(values, packed, np.array([2, 3])), dense)
    out_mask, data = constexpr.sparse_blockwise_shift_scale(
        mask, np.array([1, 2, 3, 4], np.int8), np.array([[2.0], [10.0]], np.float32), np.array([[1], [0]], np.int8)
    )
    np.testing.assert_array_equal(data, [0, 2, 30, 40])
    np.testing.assert_array_equal(out_mask, mask)
    out_mask, data = constexpr.lut_to_sparse(mask, np.array([0, 1, 1, 0], np.uint8), np.array([[[[2.0], [3.0]]]]))
    assert data.tolist() == [2, 3, 3, 2]
    out_mask, data = constexpr.lut_to_sparse(
        mask, np.array([0, 1, 1, 0], np.uint8), np.array([[[[2.0, 4.0], [3.0, 5.0]]]]), vector_axis=0
    )
    np.testing.assert_array_equal(out_mask, np.repeat(mask, 2, axis=0))
    assert data.tolist() == [2, 3, 4, 5, 3, 2, 5, 4]


def test_weights_that_do_not_fit_together_are_refused(tmp_path):
    b = Builder()
    b.input("x", "fp16", (4,))
    indices, lut = np.array([0, 1, 3, 2], np.uint8), np.ones((1, 2, 1), np.float16)
    b.op("constexpr_lut_to_dense", ("fp16", (4,)), indices=indices, lut=lut, name="w")
    b.op("add", ("fp16", (4,)), x="x", y="w", name="y")
    program = Program.load(b.save(tmp_path / "m.mlpackage", "y"))
    with pytest.raises(DamagedError, match=r"operation w \(constexpr_lut_to_dense\).*index of 3 into a palette of 2"):
        program.predict({"x": np.zeros(4)})


def test_quantize_rounds_ties_to_even_and_clips():
    x = np.array([0.5, 1.5, 2.5, -0.5, 300, -300, np.nan], np.float32)
    assert quantization.quantize(x, np.float32(1), "int8").tolist() == [0, 2, 2, 0, 127, -128, 0]
    assert quantization.quantize(x, np.float32(1), "uint8", np.uint8(10)).tolist() == [10, 12, 12, 10, 255, 0, 0]
    per_row = quantization.quantize(np.ones((2, 2), np.float32), np.array([1, 0.1], np.float32), "int8", axis=0)
    assert per_row.tolist() == [[1, 1], [10, 10]]


def test_dequantize_undoes_it_per_channel():
    y = quantization.dequantize(
        np.array([[1, 2], [3, 4]], np.int8), np.array([2, 3], np.float32), np.array([1, 2]), axis=1
    )
    assert y.tolist() == [[0, 0], [4, 6]]
