"""A program computes what it declares, keeps the declared dtypes at its interface, and says what it takes and gives."""

import numpy as np
import pytest
from palmtop.runtime.errors import RequestError, UnsupportedError
from palmtop.runtime.mil import ExecutionError, Program

from .build import Builder, literal

RNG = np.random.default_rng(0)


def two_layers(path, dtype="fp16"):
    """relu(x @ w.T + b) * 2 with the weights in the file; x is (?, 16) with 1 to 64 rows."""
    b = Builder()
    held = np.float16 if dtype == "fp16" else np.float32
    weight, bias = RNG.standard_normal((32, 16)).astype(held), RNG.standard_normal(32).astype(held)
    b.input("x", dtype, (None, 16), default=(4, 16))
    ranges = b.model.description.input[0].type.multiArrayType.shapeRange.sizeRanges
    ranges.add(lowerBound=1, upperBound=64)
    ranges.add(lowerBound=16, upperBound=16)
    h = b.op("linear", (dtype, (None, 32)), x="x", weight=b.const(b.blob(weight)), bias=b.const(b.blob(bias)), name="h")
    h = b.op("relu", (dtype, (None, 32)), x=h, name="r")
    b.op("mul", (dtype, (None, 32)), x=h, y=held(2), name="y")
    return b.save(path, "y"), weight.astype(np.float32), bias.astype(np.float32)


def test_fp32_results_are_numpys(tmp_path):
    path, weight, bias = two_layers(tmp_path / "m.mlpackage", "fp32")
    x = RNG.standard_normal((5, 16)).astype(np.float32)
    y = Program.load(path).predict({"x": x})["y"]
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, np.maximum(x @ weight.T + bias, 0) * 2)


def test_fp16_results_are_rounded_once_per_operation(tmp_path):
    path, weight, bias = two_layers(tmp_path / "m.mlpackage")
    x = RNG.standard_normal((5, 16)).astype(np.float16)
    seen = []
    y = Program.load(path).predict({"x": x}, observer=lambda *what: seen.append(what))["y"]
    h = (x.astype(np.float32) @ weight.T + bias).astype(np.float16)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, np.maximum(h, 0) * np.float16(2))
    assert [(name, kind) for name, kind, _ in seen] == [("h", "linear"), ("r", "relu"), ("y", "mul")]
    np.testing.assert_array_equal(seen[0][2], h.astype(np.float32))


def test_fp16_program_executed_in_fp32_is_not_rounded(tmp_path):
    path, weight, bias = two_layers(tmp_path / "m.mlpackage")
    x = RNG.standard_normal((5, 16)).astype(np.float32)
    y = Program.load(path).predict({"x": x}, precision="fp32")["y"]
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, np.maximum(x @ weight.T + bias, 0) * 2)
    np.testing.assert_array_equal(y, Program.load(path, precision="fp32").predict({"x": x})["y"])


def test_fp16_overflow_is_infinite_and_the_observer_finds_where(tmp_path):
    b = Builder()
    b.input("x", "fp16", (2,))
    b.op("square", ("fp16", (2,)), x="x", name="big")
    b.op("mul", ("fp16", (2,)), x="big", y=np.float16(0.5), name="y")
    program = Program.load(b.save(tmp_path / "m.mlpackage", "y"))
    first = []

    def observe(name, kind, value):
        if not np.isfinite(value).all():
            first.append((name, kind))

    y = program.predict({"x": np.array([300, 100], np.float16)}, observer=observe)["y"]
    np.testing.assert_array_equal(y, np.array([np.inf, 5000], np.float16))
    assert first[0] == ("big", "square")
    wide = program.predict({"x": np.array([300, 100])}, precision="fp32")["y"]
    np.testing.assert_array_equal(wide, [45000, 5000])


@pytest.mark.filterwarnings("error")
def test_an_input_too_large_for_fp16_is_infinite_and_no_warning(tmp_path):
    b = Builder()
    b.input("x", "fp16", (2,))
    b.op("relu", ("fp16", (2,)), x="x", name="y")
    program = Program.load(b.save(tmp_path / "m.mlpackage", "y"))
    assert program.predict({"x": [1e6, -1e6]})["y"].tolist() == [np.inf, 0]


def test_interface_tells_names_shapes_dtypes_and_ranges(tmp_path):
    path, *_ = two_layers(tmp_path / "m.mlpackage")
    program = Program.load(path)
    assert program.inputs == {"x": None}
    feature = program.input_features["x"]
    assert (feature.dtype, feature.shape, feature.ranges) == ("fp16", (None, 16), ((1, 64), (16, 16)))
    assert feature.default_shape == (4, 16)
    assert feature.describe_shape() == "[1..64, 16]"
    assert program.outputs == {"y": None}
    assert program.opset == "CoreML8"
    assert [(o.name, o.type, str(o.outputs[0][1])) for o in program.operations] == [
        ("h", "linear", "fp16[?, 32]"),
        ("r", "relu", "fp16[?, 32]"),
        ("y", "mul", "fp16[?, 32]"),
    ]
    assert program.operations[1].inputs == {"x": ("h",)}


def test_attributes_of_an_operation_are_listed(tmp_path):
    b = Builder()
    b.input("x", "fp32", (2,))
    b.op("relu", ("fp32", (2,)), x="x", name="y")
    b.block.operations[0].attributes["source"].CopyFrom(literal("model.encoder.0"))
    program = Program.load(b.save(tmp_path / "m.mlpackage", "y"))
    assert program.operations[0].attributes == {"source": "model.encoder.0"}


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"input x is missing; expected fp16 \[1..64, 16\]"),
        ({"x": np.zeros((65, 16))}, r"input x: expected the shape \[1..64, 16\], got \[65, 16\]"),
        ({"x": np.zeros((2, 15))}, r"input x: expected the shape"),
        ({"x": np.zeros(16)}, r"input x: expected the shape"),
        ({"x": np.zeros((1, 16)), "z": 1}, "no input 'z'; its inputs are x"),
        ({"x": np.array([["a"] * 16])}, "input x: expected fp16, got an array of <U1"),
        ({"x": np.zeros((1, 16), np.complex64)}, "input x: expected fp16, got an array of complex64"),
        ({"x": [[0] * 16, [0]]}, "input x: not an array"),
    ],
)
def test_wrong_feeds_are_refused_by_name(tmp_path, feeds, message):
    path, *_ = two_layers(tmp_path / "m.mlpackage")
    with pytest.raises(RequestError, match=message):
        Program.load(path).predict(feeds)


def integer_program(path):
    b = Builder()
    b.input("i", "int32", (3,))
    b.op("add", ("int32", (3,)), x="i", y=np.int32(1), name="y")
    return Program.load(b.save(path, "y"))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, np.bool_])
def test_integers_may_be_fed_in_any_dtype_that_holds_them(tmp_path, dtype):
    y = integer_program(tmp_path / "m.mlpackage").predict({"i": np.array([0, 1, 1], dtype)})["y"]
    assert y.dtype == np.int32
    assert y.tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.5, 0, 0], "not whole numbers"),
        ([np.nan, 0, 0], "not whole numbers"),
        ([2**31, 0, 0], "do not fit in int32"),
    ],
)
def test_numbers_that_an_integer_input_cannot_hold_are_refused(tmp_path, value, message):
    with pytest.raises(RequestError, match=f"input i: .*{message}"):
        integer_program(tmp_path / "m.mlpackage").predict({"i": np.array(value)})


def test_enumerated_shapes_are_the_only_ones_allowed(tmp_path):
    b = Builder()
    b.input("x", "fp32", (1, None), default=(1, 4))
    shapes = b.model.description.input[0].type.multiArrayType.enumeratedShapes.shapes
    shapes.add(shape=[1, 4])
    shapes.add(shape=[1, 8])
    b.op("relu", ("fp32", (1, None)), x="x", name="y")
    program = Program.load(b.save(tmp_path / "m.mlpackage", "y"))
    assert program.input_features["x"].enumerated == ((1, 4), (1, 8))
    assert program.predict({"x": np.ones((1, 8))})["y"].shape == (1, 8)
    with pytest.raises(RequestError, match=r"one of \[1, 4\], \[1, 8\], got \[1, 6\]"):
        program.predict({"x": np.ones((1, 6))})


@pytest.mark.parametrize(("default", "accepted"), [((2, 4), True), ((2, 3), False)])
def test_a_model_that_stacks_different_shapes_by_default_is_refused_before_anything_is_fed(tmp_path, default, accepted):
    b = Builder()
    b.input("x", "fp32", (2, 4))
    b.input("y", "fp32", (2, None), default=default)
    sizes = b.model.description.input[1].type.multiArrayType.shapeRange.sizeRanges
    sizes.add(lowerBound=2, upperBound=2)
    sizes.add(lowerBound=1, upperBound=10)
    b.op("relu", ("fp32", (2, None)), x="y", name="r")
    b.op("stack", ("fp32", (2, 2, 4)), values=("x", "r"), axis=0, name="z")
    path = b.save(tmp_path / "m.mlpackage", "z")
    if accepted:
        ones = np.ones((2, 4))
        assert Program.load(path).predict({"x": ones, "y": -ones})["z"].tolist() == [ones.tolist(), (0 * ones).tolist()]
    else:
        with pytest.raises(
            UnsupportedError, match=r"z \(stack\): .* \(\[2, 3\] and \[2, 4\]\) at the default"
        ) as error:
            Program.load(path)
        assert isinstance(error.value, RuntimeError)


def test_what_is_no_path_no_feeds_and_no_state_is_said_to_be_none(tmp_path):
    b = Builder()
    b.input("x", "fp32", (2,))
    b.op("relu", ("fp32", (2,)), x="x", name="y")
    program = Program.load(b.save(tmp_path / "m.mlpackage", "y"))
    with pytest.raises(RequestError, match="feeds must map input names to arrays, not be a list"):
        program.predict([np.ones(2)])
    with pytest.raises(RequestError, match=r"state must be what program.new_state\(\) gives, not a dict"):
        program.predict({"x": np.ones(2)}, state={})
    with pytest.raises(RequestError, match="None is not a path"):
        Program.load(None)


def test_a_refused_shape_is_a_runtime_error_in_core_mls_words(tmp_path):
    b = Builder()
    b.input("x", "fp32", (1, None), default=(1, 4))
    sizes = b.model.description.input[0].type.multiArrayType.shapeRange.sizeRanges
    sizes.add(lowerBound=1, upperBound=1)
    sizes.add(lowerBound=3, upperBound=5)
    b.op("relu", ("fp32", (1, None)), x="x", name="y")
    program = Program.load(b.save(tmp_path / "ranges.mlpackage", "y"))
    with pytest.raises(RuntimeError, match=r"Size \(99\) of dimension \(1\) is not in allowed range \(3\.\.5\)"):
        program.predict({"x": np.ones((1, 99))})
    b = Builder()
    b.input("x", "fp32", (1, None), default=(1, 4))
    b.model.description.input[0].type.multiArrayType.enumeratedShapes.shapes.add(shape=[1, 4])
    b.op("relu", ("fp32", (1, None)), x="x", name="y")
    program = Program.load(b.save(tmp_path / "list.mlpackage", "y"))
    with pytest.raises(RuntimeError, match=r"MultiArray Shape \(1 x 5\) was not in enumerated set of allowed shapes"):
        program.predict({"x": np.ones((1, 5))})


def test_optional_input_takes_its_default(tmp_path):
    b = Builder()
    b.input("x", "fp32", (2,))
    b.input("bias", "fp32", (2,))
    feature = b.model.description.input[1].type
    feature.isOptional = True
    feature.multiArrayType.floatDefaultValue = 3
    b.op("add", ("fp32", (2,)), x="x", y="bias", name="y")
    program = Program.load(b.save(tmp_path / "m.mlpackage", "y"))
    assert program.predict({"x": np.ones(2)})["y"].tolist() == [4, 4]
    assert program.predict({"x": np.ones(2), "bias": np.zeros(2)})["y"].tolist() == [1, 1]


def test_scalars_pass_the_interface_as_rank_0_or_as_one_element(tmp_path):
    b = Builder()
    b.input("x", "fp32", (), default=(1,))
    b.op("mul", ("fp32", ()), x="x", y=2.0, name="y")
    program = Program.load(b.save(tmp_path / "m.mlpackage", "y"))
    assert program.predict({"x": 3})["y"] == 6
    assert program.predict({"x": [3.0]})["y"].shape == ()


def test_results_are_the_callers_own(tmp_path):
    """Neither the feeds, nor constants, nor the next prediction change when a caller writes into a result."""
    b = Builder()
    b.input("x", "fp32", (2, 2))
    b.op("transpose", ("fp32", (2, 2)), x="x", perm=np.array([1, 0], np.int32), name="t")
    b.op("identity", ("fp32", (2, 2)), x="x", name="same")
    b.op("identity", ("fp32", (16,)), x=b.const(b.blob(np.ones(16, np.float32))), name="constant")
    program = Program.load(b.save(tmp_path / "m.mlpackage", "t", "same", "constant"))
    x = np.arange(4, dtype=np.float32).reshape(2, 2)
    for _ in range(2):
        results = program.predict({"x": x})
        np.testing.assert_array_equal(results["t"], [[0, 2], [1, 3]])
        np.testing.assert_array_equal(results["constant"], np.ones(16))
        for value in results.values():
            value[...] = 9
    np.testing.assert_array_equal(x, [[0, 1], [2, 3]])


def test_a_value_that_an_operation_cannot_take_names_the_operation(tmp_path):
    b = Builder()
    b.input("x", "fp32", (None,), default=(4,))
    b.model.description.input[0].type.multiArrayType.shapeRange.sizeRanges.add(lowerBound=1, upperBound=-1)
    b.op("reshape", ("fp32", (2, 2)), x="x", shape=np.array([2, 2], np.int32), name="square")
    program = Program.load(b.save(tmp_path / "m.mlpackage", "square"))
    assert program.predict({"x": np.ones(4)})["square"].shape == (2, 2)
    with pytest.raises(
        ExecutionError, match=r"operation square \(reshape\) on x float32\[5\], shape int32\[2\]: cannot reshape"
    ):
        program.predict({"x": np.ones(5)})


def test_a_result_that_is_not_what_the_program_declares_is_refused(tmp_path):
    b = Builder()
    b.input("x", "fp32", (3,))
    b.op("relu", ("fp32", (4,)), x="x", name="y")
    with pytest.raises(ExecutionError, match=r"y \(relu\).*declares the shape \(4,\), but computes \(3,\)"):
        Program.load(b.save(tmp_path / "m.mlpackage", "y")).predict({"x": np.ones(3)})
    b = Builder()
    b.input("x", "fp32", (3,))
    b.op("relu", ("int32", (3,)), x="x", name="y")
    with pytest.raises(ExecutionError, match=r"declares int32, but computes float32"):
        Program.load(b.save(tmp_path / "n.mlpackage", "y")).predict({"x": np.ones(3)})


def test_a_mask_that_coremltools_declares_a_scalar_is_executed_as_the_tensor_it_is(tmp_path):
    """Its `select` infers a shape from the branches alone; what follows inherits it."""
    b = Builder()
    b.input("x", "fp32", (2, 3))
    b.op("greater", ("bool", (2, 3)), x="x", y=np.float32(0), name="positive")
    b.op("select", ("fp32", ()), cond="positive", a=np.float32(0), b=np.float32(-5), name="mask")
    b.op("cast", ("fp16", ()), x="mask", dtype=literal("fp16"), name="half")
    b.op("cast", ("fp32", ()), x="half", dtype=literal("fp32"), name="whole")
    b.op("add", ("fp32", (2, 3)), x="x", y="whole", name="y")
    y = Program.load(b.save(tmp_path / "m.mlpackage", "y")).predict({"x": [[1, -1, 2], [-2, 3, -3]]})["y"]
    assert y.tolist() == [[1, -6, 2], [-7, 3, -8]]


def test_unknown_precision_is_refused(tmp_path):
    path, *_ = two_layers(tmp_path / "m.mlpackage")
    with pytest.raises(RequestError, match=r"precision 'bf16': give"):
        Program.load(path, precision="bf16")


def test_weights_are_mapped_and_read_at_the_first_prediction(tmp_path):
    b = Builder()
    b.input("x", "fp32", (1, 4))
    weight = RNG.standard_normal((3, 4)).astype(np.float32)
    b.op("linear", ("fp32", (1, 3)), x="x", weight=b.const(b.blob(weight)), name="y")
    program = Program.load(b.save(tmp_path / "m.mlpackage", "y"))
    assert program._constants is None
    program.predict({"x": np.ones((1, 4))})
    constants = program._template()
    (held,) = [c for c in constants if isinstance(c, np.ndarray) and c.shape == (3, 4)]
    assert not held.flags.owndata  # a view of the map, not a copy
    program.predict({"x": np.ones((1, 4))})
    assert program._template() is constants


def test_predictions_may_run_in_several_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    path, *_ = two_layers(tmp_path / "m.mlpackage")
    program = Program.load(path)
    feeds = [RNG.standard_normal((n, 16)).astype(np.float16) for n in range(1, 17)]
    alone = [Program.load(path).predict({"x": x})["y"] for x in feeds]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda x: program.predict({"x": x})["y"], feeds))
    for a, t in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, t)
