"""States, control flow, lists, classifiers, images and packages of several functions."""

import numpy as np
import pytest
from palmtop.runtime.errors import DamagedError, RequestError
from palmtop.runtime.mil import ExecutionError, Program

from .build import MESSAGES, Builder, literal, set_type


def accumulator(path, shape=(2, 3)):
    """total += x; gives the total."""
    b = Builder()
    b.input("x", "fp16", shape)
    b.state("total", shape)
    b.op("read_state", ("fp16", shape), input="total", name="before")
    b.op("add", ("fp16", shape), x="before", y="x", name="sum")
    b.op("write_state", [], input="total", data="sum")
    b.op("read_state", ("fp16", shape), input="total", name="after")
    return b.save(path, "after")


def test_state_is_carried_between_predictions_and_belongs_to_its_holder(tmp_path):
    program = Program.load(accumulator(tmp_path / "m.mlpackage"))
    x = np.ones((2, 3), np.float16)
    one, two = program.new_state(), program.new_state()
    for expected in (1, 2, 3):
        assert (program.predict({"x": x}, state=one)["after"] == expected).all()
    assert (program.predict({"x": x}, state=two)["after"] == 1).all()
    assert program.state_features["total"].shape == (2, 3)


def test_state_can_be_read_and_written_in_its_dtype(tmp_path):
    program = Program.load(accumulator(tmp_path / "m.mlpackage"))
    state = program.new_state()
    assert state.names == ["total"]
    state.write_state("total", np.full((2, 3), 0.1))
    assert state.read_state("total").dtype == np.float16
    y = program.predict({"x": np.zeros((2, 3))}, state=state)["after"]
    np.testing.assert_array_equal(y, np.full((2, 3), 0.1, np.float16))
    y[...] = 7  # a result is a copy, not the state
    np.testing.assert_array_equal(state.read_state("total"), np.full((2, 3), 0.1, np.float16))
    with pytest.raises(RequestError, match=r"has the shape \[2, 3\], not \[3\]"):
        state.write_state("total", np.zeros(3))
    with pytest.raises(RequestError, match="no state 'k'; there are total"):
        state.read_state("k")


def test_missing_state_and_the_state_of_another_program_are_refused(tmp_path):
    program = Program.load(accumulator(tmp_path / "m.mlpackage"))
    with pytest.raises(RequestError, match=r"the model has states \(total\): pass state=program.new_state\(\)"):
        program.predict({"x": np.zeros((2, 3))})
    other = Program.load(accumulator(tmp_path / "n.mlpackage", (4,)))
    with pytest.raises(RequestError, match="belongs to another program"):
        program.predict({"x": np.zeros((2, 3))}, state=other.new_state())


def test_cond_runs_one_branch_only(tmp_path):
    b = Builder()
    b.input("x", "fp32", (3,))
    b.op("reduce_sum", ("fp32", ()), x="x", name="total")
    b.op("greater", ("bool", ()), x="total", y=np.float32(0), name="positive")
    b.op("cond", ("fp32", (3,)), pred="positive", name="y")
    for scale, label in ((2.0, "twice"), (-1.0, "minus")):
        block = b.block.operations[-1].blocks.add()
        b.op("mul", ("fp32", (3,)), block=block, x="x", y=scale, name=label)
        block.outputs.append(label)
    program = Program.load(b.save(tmp_path / "m.mlpackage", "y"))
    seen = []
    y = program.predict({"x": [1, 2, 3]}, observer=lambda name, kind, value: seen.append(name))["y"]
    assert y.tolist() == [2, 4, 6]
    assert seen == ["total", "positive", "twice", "y"]
    assert program.predict({"x": [-1, -2, -3]})["y"].tolist() == [1, 2, 3]


def loop(path, limit="n"):
    """i = 0; while i < n: i, x = i + 1, x * 2"""
    b = Builder()
    b.input("x", "fp32", (2,))
    b.input("n", "int32", (), default=(1,))
    start = b.const(0)
    b.op("while_loop", [("int32", ()), ("fp32", (2,))], loop_vars=(start, "x"), name="y")
    test, body = b.block.operations[-1].blocks.add(), b.block.operations[-1].blocks.add()
    for prefix, block in (("t", test), ("b", body)):
        set_type(block.inputs.add(name=f"{prefix}_i").type, "int32", ())
        set_type(block.inputs.add(name=f"{prefix}_x").type, "fp32", (2,))
    b.op("less", ("bool", ()), block=test, x="t_i", y=limit, name="more")
    test.outputs.append("more")
    b.op("add", ("int32", ()), block=body, x="b_i", y=1, name="next_i")
    b.op("mul", ("fp32", (2,)), block=body, x="b_x", y=2.0, name="next_x")
    body.outputs.extend(["next_i", "next_x"])
    return b.save(path, "y", "y_1")


@pytest.mark.parametrize("n", [0, 1, 5])
def test_while_loop_repeats_its_body_while_the_condition_holds(tmp_path, n):
    y = Program.load(loop(tmp_path / "m.mlpackage")).predict({"x": [1, 3], "n": n})
    assert y["y"] == n
    assert y["y_1"].tolist() == [2**n, 3 * 2**n]


def test_nested_blocks_see_only_what_is_defined_before_them(tmp_path):
    with pytest.raises(DamagedError, match=r"more \(less\), input y, refers to 'next_i'"):
        Program.load(loop(tmp_path / "m.mlpackage", limit="next_i"))


def test_blocks_that_do_not_fit_their_operation_are_refused(tmp_path):
    b = Builder()
    b.input("x", "fp32", (2,))
    b.op("cond", ("fp32", (2,)), pred=True, name="y")
    with pytest.raises(DamagedError, match=r"y \(cond\): has 0 blocks, needs 2"):
        Program.load(b.save(tmp_path / "m.mlpackage", "y"))


def list_type(dtype, shape):
    type = MESSAGES["ValueType"]()
    set_type(type.listType.type, dtype, shape)
    type.listType.length.unknown.SetInParent()
    return type


def test_lists_are_written_read_gathered_and_scattered(tmp_path):
    b = Builder()
    b.input("x", "fp32", (3, 2))
    shape = np.array([2], np.int32)
    made = b.op("make_list", ("fp32", ()), init_length=2, dynamic_length=True, elem_shape=shape, dtype=literal("fp32"))
    begin, end, squeeze = np.array([2, 0], np.int32), np.array([3, 2], np.int32), np.array([True, False])
    row = b.op("slice_by_index", ("fp32", (2,)), x="x", begin=begin, end=end, squeeze_mask=squeeze)
    written = b.op("list_write", ("fp32", ()), ls=made, index=4, value=row)
    indices = np.array([0, 1], np.int32)
    top = b.op("slice_by_size", ("fp32", (2, 2)), x="x", begin=np.zeros(2, np.int32), size=np.array([2, 2], np.int32))
    filled = b.op("list_scatter", ("fp32", ()), ls=written, indices=indices, value=top)
    for name in (made, written, filled):
        (output,) = [o for op in b.block.operations for o in op.outputs if o.name == name]
        output.type.CopyFrom(list_type("fp32", (2,)))
    b.op("list_length", ("int32", ()), ls=filled, name="length")
    b.op("list_read", ("fp32", (2,)), ls=filled, index=1, name="read")
    b.op("list_gather", ("fp32", (3, 2)), ls=filled, indices=np.array([4, 0, 3], np.int32), name="gathered")
    program = Program.load(b.save(tmp_path / "m.mlpackage", "length", "read", "gathered"))
    results = program.predict({"x": np.arange(6).reshape(3, 2)})
    assert results["length"] == 5
    assert results["read"].tolist() == [2, 3]
    assert results["gathered"].tolist() == [[4, 5], [0, 1], [0, 0]]


def test_reading_beyond_a_list_names_the_operation(tmp_path):
    b = Builder()
    b.input("i", "int32", ())
    made = b.op("make_list", ("fp32", ()), init_length=2, elem_shape=np.array([1], np.int32), dtype=literal("fp32"))
    b.block.operations[-1].outputs[0].type.CopyFrom(list_type("fp32", (1,)))
    b.op("list_read", ("fp32", (1,)), ls=made, index="i", name="y")
    with pytest.raises(ExecutionError, match=r"y \(list_read\).*index 2 is out of a list of 2"):
        Program.load(b.save(tmp_path / "m.mlpackage", "y")).predict({"i": 2})


@pytest.mark.parametrize(("labels", "best"), [(["cat", "dog", "auk"], "dog"), ([10, 20, 30], 20)])
def test_classifier_gives_the_label_and_all_probabilities(tmp_path, labels, best):
    b = Builder()
    b.input("x", "fp32", (1, 3))
    b.op("softmax", ("fp32", (1, 3)), x="x", axis=-1, name="p")
    b.op("classify", [("string", ()), ("fp32", ())], probabilities="p", classes=labels, name="classLabel")
    key = "string" if isinstance(labels[0], str) else "int64"
    set_type(b.block.operations[-1].outputs[0].type, key, ())
    type = b.block.operations[-1].outputs[1].type.dictionaryType
    set_type(type.keyType, key, ())
    set_type(type.valueType, "fp64", ())
    description = b.model.description
    label = description.output.add(name="classLabel").type
    label.stringType.SetInParent() if key == "string" else label.int64Type.SetInParent()
    description.output.add(name="classLabel_1").type.dictionaryType.stringKeyType.SetInParent()
    description.predictedFeatureName = "classLabel"
    program = Program.load(b.save(tmp_path / "m.mlpackage", "classLabel", "classLabel_1"))
    results = program.predict({"x": np.log([[0.2, 0.7, 0.1]])})
    assert results["classLabel"] == best
    assert type_of(results["classLabel"]) is (str if key == "string" else int)
    assert results["classLabel_1"] == pytest.approx(dict(zip(labels, [0.2, 0.7, 0.1], strict=True)))
    assert program.output_features["classLabel"].kind == "label"
    assert program.outputs == {"classLabel": None, "classLabel_1": None}


type_of = type

COLORS = {"GRAYSCALE": 10, "RGB": 20, "BGR": 30, "GRAYSCALE_FLOAT16": 40}


def image_program(path, layout, flexible=False):
    """An image of 4 x 6 pixels in and out, unchanged; the tensor in the program as a second output."""
    channels = 1 if layout.startswith("GRAY") else 3
    dtype = "fp16" if layout == "GRAYSCALE_FLOAT16" else "fp32"
    shape = (1, channels, None, None) if flexible else (1, channels, 4, 6)
    b = Builder()
    set_type(b.function.inputs.add(name="image").type, dtype, shape)
    image = b.model.description.input.add(name="image").type.imageType
    image.width, image.height, image.colorSpace = 6, 4, COLORS[layout]
    if flexible:
        image.imageSizeRange.heightRange.lowerBound, image.imageSizeRange.heightRange.upperBound = 2, 8
        image.imageSizeRange.widthRange.lowerBound, image.imageSizeRange.widthRange.upperBound = 1, -1
    b.op("identity", (dtype, shape), x="image", name="pixels")
    b.op("identity", (dtype, shape), x="image", name="tensor")
    out = b.model.description.output.add(name="pixels").type.imageType
    out.width, out.height, out.colorSpace = 6, 4, COLORS[layout]
    return Program.load(b.save(path, "pixels", "tensor"))


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_colour_images_enter_as_channels_and_leave_as_pixels(tmp_path, layout):
    from PIL import Image

    program = image_program(tmp_path / "m.mlpackage", layout)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    results = program.predict({"image": Image.fromarray(pixels)})
    np.testing.assert_array_equal(results["pixels"], pixels)
    channels = pixels.transpose(2, 0, 1)[:: 1 if layout == "RGB" else -1]
    np.testing.assert_array_equal(results["tensor"][0], channels)
    assert program.inputs == {"image": (1, 3, 4, 6)}
    assert program.outputs["pixels"] == (4, 6, 3)
    assert program.input_features["image"].color_space == layout
    same = program.predict({"image": channels[None].astype(np.float32)})
    np.testing.assert_array_equal(same["pixels"], pixels)


@pytest.mark.parametrize("layout", ["GRAYSCALE", "GRAYSCALE_FLOAT16"])
def test_gray_images(tmp_path, layout):
    from PIL import Image

    program = image_program(tmp_path / "m.mlpackage", layout)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6), np.uint8)
    results = program.predict({"image": Image.fromarray(pixels)})
    assert results["pixels"].dtype == (np.uint8 if layout == "GRAYSCALE" else np.float16)
    np.testing.assert_array_equal(results["pixels"], pixels)


def test_pixels_are_rounded_and_clipped(tmp_path):
    program = image_program(tmp_path / "m.mlpackage", "GRAYSCALE")
    tensor = np.zeros((1, 1, 4, 6), np.float32)
    tensor[0, 0, 0] = [-3, 0.5, 1.5, 254.6, 300, np.nan]
    assert program.predict({"image": tensor})["pixels"][0].tolist() == [0, 0, 2, 255, 255, 0]


def test_image_size_must_be_allowed(tmp_path):
    from PIL import Image

    fixed = image_program(tmp_path / "m.mlpackage", "RGB")
    with pytest.raises(RequestError, match=r"input image: expected the shape \[1, 3, 4, 6\], got \[1, 3, 6, 4\]"):
        fixed.predict({"image": Image.new("RGB", (4, 6))})
    flexible = image_program(tmp_path / "n.mlpackage", "RGB", flexible=True)
    assert flexible.predict({"image": Image.new("RGB", (50, 8))})["pixels"].shape == (8, 50, 3)
    with pytest.raises(RequestError, match=r"expected the shape \[1, 3, 2..8, 1..\], got \[1, 3, 9, 50\]"):
        flexible.predict({"image": Image.new("RGB", (50, 9))})


def test_each_function_of_a_package_has_its_own_interface(tmp_path):
    b = Builder()
    b.input("x", "fp32", (2,))
    b.op("mul", ("fp32", (2,)), x="x", y=2.0, name="y")
    b.save(tmp_path / "m.mlpackage", "y")
    spec, single = b.model, b.function
    other = spec.mlProgram.functions["other"]
    other.CopyFrom(single)
    other.block_specializations["CoreML8"].operations[0].type = "sub"
    for name in ("main", "other"):
        description = spec.description.functions.add(name=name)
        description.input.extend(spec.description.input)
        description.output.extend(spec.description.output)
    del spec.description.input[:], spec.description.output[:]
    spec.description.defaultFunctionName = "other"
    del b.block.outputs[:]
    path = tmp_path / "m.mlpackage" / "Data" / "com.apple.CoreML" / "model.mlmodel"
    b.block.outputs.append("y")
    path.write_bytes(spec.SerializeToString())
    package = tmp_path / "m.mlpackage"
    main, default = Program.load(package, function="main"), Program.load(package)
    assert (main.function, default.function) == ("main", "other")
    assert main.functions == ["main", "other"]
    assert main.predict({"x": [5, 6]})["y"].tolist() == [10, 12]
    assert default.predict({"x": [5, 6]})["y"].tolist() == [3, 4]
    with pytest.raises(RequestError, match="no function 'third'; it has main, other"):
        Program.load(package, function="third")
