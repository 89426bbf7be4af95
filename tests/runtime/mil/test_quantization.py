"""`quantize` and `dequantize` in programs: declared types, zero points, axes, halves; as coremltools has them."""

from __future__ import annotations

import numpy as np
import pytest
from palmtop.runtime.errors import RequestError
from palmtop.runtime.mil import Program

from .build import Builder, literal

X = np.random.default_rng(4).normal(0, 2, (3, 5)).astype(np.float16).astype(np.float32)


def program(path, dtype, scale, zero_point, axis, half=True):
    """The input, its integers, and what these stand for."""
    b = Builder()
    kind = "fp16" if half else "fp32"
    scale = np.asarray(scale, np.float16 if half else np.float32)
    extra = {} if zero_point is None else {"zero_point": np.asarray(zero_point, dtype)}
    extra |= {} if axis is None else {"axis": axis}
    b.input("x", kind, (3, 5))
    b.op("quantize", (dtype, (3, 5)), input="x", scale=scale, output_dtype=literal(dtype), name="q", **extra)
    b.op("dequantize", (kind, (3, 5)), input="q", scale=scale, name="y", **extra)
    return Program.load(b.save(path / "m.mlpackage", "y"))


def by_hand(dtype, scale, zero_point, shape):
    scale = np.asarray(scale, np.float16).astype(np.float32).reshape(shape)
    zero = np.zeros_like(scale) if zero_point is None else np.asarray(zero_point, np.float32).reshape(shape)
    limits = np.iinfo(dtype)
    whole = np.clip(np.rint(X / scale) + zero, limits.min, limits.max)
    return whole, (whole - zero) * scale


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point", "axis", "shape"),
    [
        ("int8", 0.04, None, None, ()),
        ("int8", 0.03, -20, None, ()),
        ("uint8", 0.03, 200, None, ()),
        ("int8", [0.01, 0.02, 0.05], [-128, 3, 127], 0, (3, 1)),
        ("uint8", [0.01, 0.02, 0.05, 0.001, 0.1], [255, 0, 128, 7, 9], 1, (1, 5)),
        ("int8", [0.01, 0.02, 0.05, 0.001, 0.1], None, -1, (1, 5)),
    ],
)
def test_a_program_quantizes_and_back_in_its_declared_types(tmp_path, dtype, scale, zero_point, axis, shape):
    seen = {}
    y = program(tmp_path, dtype, scale, zero_point, axis).predict(
        {"x": X}, observer=lambda name, _, value: seen.update({name: value})
    )["y"]
    whole, back = by_hand(dtype, scale, zero_point, shape)
    assert seen["q"].dtype == dtype
    np.testing.assert_array_equal(seen["q"], whole)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, back.astype(np.float16))
    assert np.unique(seen["q"]).size > 5


@pytest.mark.parametrize(("dtype", "zero_point"), [("int8", -20), ("uint8", 200), ("int8", None)])
def test_coremltools_infers_the_same_integers(tmp_path, dtype, zero_point):
    optimize = pytest.importorskip("coremltools.optimize._utils")
    from coremltools.converters.mil.mil import types

    seen = {}
    program(tmp_path, dtype, 0.03, zero_point, None, half=False).predict(
        {"x": X}, observer=lambda name, _, value: seen.update({name: value})
    )
    zero = None if zero_point is None else np.array(zero_point, dtype)
    theirs = optimize.quantize_by_scale_and_zp(X, np.float32(0.03), zero, types.string_to_builtin(dtype))
    np.testing.assert_array_equal(seen["q"], theirs)


def test_only_bytes_are_quantized_to(tmp_path):
    with pytest.raises(RequestError, match="quantizes to int8 or uint8, not to int32"):
        program(tmp_path, "int32", 0.03, None, None).predict({"x": X})
