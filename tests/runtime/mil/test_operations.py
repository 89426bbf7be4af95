"""Operations compute what PyTorch or numpy computes, and what coremltools documents where neither has them."""

import numpy as np
import pytest
import torch
from palmtop.runtime.mil.ops import (
    activation,
    elementwise_binary,
    elementwise_unary,
    linear,
    tensor_operation,
    tensor_transformation,
)
from palmtop.runtime.mil.registry import OPERATIONS, find
from palmtop.runtime.mil.types import TensorType

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4, 6)).astype(np.float32) * 3


def run(operation, *arguments, opset=26, **more):
    return find(operation, opset).run(*arguments, **more)


def out(dtype, *shape):
    return (TensorType(dtype, shape),)


def agree(ours, theirs, tolerance=2e-6):
    theirs = theirs.numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


T = torch.from_numpy(X)
ACTIVATIONS = {
    "relu": ({}, torch.relu),
    "relu6": ({}, torch.nn.functional.relu6),
    "leaky_relu": ({"alpha": np.float32(0.1)}, lambda x: torch.nn.functional.leaky_relu(x, 0.1)),
    "clamped_relu": ({"alpha": 0.5, "beta": 1.5}, lambda x: torch.where(x >= 0, x, 0.5 * x).clamp(max=1.5)),
    "thresholded_relu": ({"alpha": 1.0}, lambda x: torch.where(x >= 1, x, 0)),
    "elu": ({"alpha": 0.7}, lambda x: torch.nn.functional.elu(x, 0.7)),
    "gelu": ({}, torch.nn.functional.gelu),
    "linear_activation": ({"alpha": 2.0, "beta": 3.0}, lambda x: 2 * x + 3),
    "scaled_tanh": ({"alpha": 2.0, "beta": 0.5}, lambda x: 2 * torch.tanh(0.5 * x)),
    "sigmoid": ({}, torch.sigmoid),
    "sigmoid_hard": ({"alpha": 0.2, "beta": 0.5}, lambda x: (0.2 * x + 0.5).clamp(0, 1)),
    "silu": ({}, torch.nn.functional.silu),
    "softplus": ({}, torch.nn.functional.softplus),
    "softsign": ({}, torch.nn.functional.softsign),
    "softmax": ({"axis": 1}, lambda x: torch.softmax(x, 1)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    parameters, theirs = ACTIVATIONS[name]
    agree(run(name, X, **parameters), theirs(T))


def test_gelu_modes():
    agree(activation.gelu(X, "TANH_APPROXIMATION"), torch.nn.functional.gelu(T, approximate="tanh"), 3e-6)
    agree(activation.gelu(X, "SIGMOID_APPROXIMATION"), T * torch.sigmoid(1.702 * T))
    with pytest.raises(ValueError, match="unknown mode"):
        activation.gelu(X, "GUESS")


def test_activations_with_parameters_per_channel():
    alpha, beta = np.array([0.1, 0.2, 0.3], np.float32), np.array([1, 2, 3], np.float32)
    agree(activation.prelu(X, alpha), torch.nn.functional.prelu(T, torch.from_numpy(alpha)))
    a, b = alpha.reshape(1, 3, 1, 1), beta.reshape(1, 3, 1, 1)
    agree(activation.softplus_parametric(X, alpha, beta), a * np.log1p(np.exp(b * X.astype(np.float64))), 1e-5)
    with pytest.raises(ValueError, match="one parameter per channel"):
        activation.prelu(X, alpha[:2])


def test_softmax_of_nothing_but_minus_infinity_is_nan():
    with np.errstate(invalid="ignore"):
        assert np.isnan(activation.softmax(np.full((1, 3), -np.inf, np.float32))).all()


UNARY = ("abs", "acos", "asin", "atan", "atanh", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "round", "sign")
UNARY += ("sin", "sinh", "sqrt", "square", "tan", "tanh")


@pytest.mark.parametrize("name", UNARY)
def test_unary_functions(name):
    x = RNG.uniform(0.01, 0.99, (3, 5)).astype(np.float32) if name in ("acos", "asin", "atanh", "sqrt") else X
    agree(run(name, x), getattr(torch, name)(torch.from_numpy(x)), 2e-5 if name == "tan" else 2e-6)


def test_integers_stay_integers():
    x = np.array([-3, 0, 4], np.int32)
    for name in ("abs", "sign", "square"):
        assert run(name, x).dtype == np.int32
    assert run("reduce_mean", np.array([1, 2], np.int32)).dtype == np.int32
    assert linear.linear(x, np.ones((2, 3), np.int32)).dtype == np.int32


def test_epsilons_are_added_before_the_function():
    x = np.array([0, 1], np.float32)
    np.testing.assert_allclose(elementwise_unary.inverse(x), [1e4, 1 / 1.0001], rtol=1e-6)
    np.testing.assert_allclose(elementwise_unary.rsqrt(x, np.float32(0.25)), [2, 1 / np.sqrt(1.25)], rtol=1e-6)
    np.testing.assert_allclose(elementwise_unary.log(x, np.float32(1)), [0, np.log(2)], rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([1.9, -1.9, 3e9, -3e9, np.nan], "int32", [1, -1, 2**31 - 1, -(2**31), 0]),
        ([300.0, -5.0], "uint8", [255, 0]),
        ([0.0, 0.1, np.nan], "bool", [False, True, True]),
        ([True, False], "fp32", [1, 0]),
    ],
)
def test_cast(values, dtype, expected):
    y = elementwise_unary.cast(np.array(values), dtype, out=out(dtype, len(values)))
    assert y.tolist() == expected


def test_division_of_integers_truncates_and_floor_division_floors():
    x, y = np.array([7, -7, 7, -7], np.int32), np.array([2, 2, -2, -2], np.int32)
    assert elementwise_binary.real_div(x, y).tolist() == [3, -3, -3, 3]
    assert elementwise_binary.floor_div(x, y).tolist() == [3, -4, -4, 3]
    assert elementwise_binary.mod(x, y).tolist() == [1, 1, -1, -1]
    assert elementwise_binary.power(x, np.int32(2)).tolist() == [49] * 4


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axes", [None, [1], [0, -1]])
def test_reductions(axes, keep):
    axis = None if axes is None else tuple(axes)
    how = {"axis": axis, "keepdims": keep}
    absolute = np.abs(X.astype(np.float64))
    expected = {
        "reduce_l1_norm": absolute.sum(**how),
        "reduce_l2_norm": np.sqrt((absolute**2).sum(**how)),
        "reduce_max": X.max(**how),
        "reduce_mean": X.mean(**how),
        "reduce_min": X.min(**how),
        "reduce_prod": (X / 3).prod(**how),
        "reduce_sum": X.sum(**how),
        "reduce_sum_square": (absolute**2).sum(**how),
        "reduce_log_sum_exp": np.log(np.exp(X.astype(np.float64)).sum(**how)),
        "reduce_log_sum": np.log(absolute.sum(**how)),
    }
    given = {"reduce_prod": X / 3, "reduce_log_sum": np.abs(X)}
    for name, value in expected.items():
        y = run(name, given.get(name, X), axes=axes and np.array(axes), keep_dims=keep)
        agree(y, np.asarray(value), 1e-5)


def test_log_sum_exp_of_minus_infinity():
    with np.errstate(divide="ignore"):
        assert run("reduce_log_sum_exp", np.full(3, -np.inf, np.float32)) == -np.inf


def test_arguments_of_extremes():
    y = run("reduce_argmax", X, axis=2, keep_dims=True, out=out("uint16", 2, 3, 1, 6))
    assert y.dtype == np.uint16
    np.testing.assert_array_equal(y, X.argmax(2, keepdims=True))
    assert run("reduce_argmin", np.array([2, 1, 1]), out=out("int32")) == 1


def test_linear_and_matmul():
    w, b = RNG.standard_normal((5, 6)).astype(np.float32), RNG.standard_normal(5).astype(np.float32)
    agree(linear.linear(X, w, b), torch.nn.functional.linear(T, torch.from_numpy(w), torch.from_numpy(b)), 1e-5)
    with pytest.raises(ValueError, match="does not fit"):
        linear.linear(X, w[:, :5])
    y = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
    agree(linear.matmul(X, y, transpose_x=True, out=out("fp32")), X.swapaxes(-1, -2) @ y)
    agree(linear.matmul(X, X[0], transpose_y=True, out=out("fp32")), X @ X[0].swapaxes(-1, -2))
    agree(
        linear.matmul(X[0, 0, 0], X[0, 0], transpose_x=True, transpose_y=True, out=out("fp32")),
        X[0, 0] @ X[0, 0, 0],
        1e-5,
    )


@pytest.mark.parametrize("equation", ["nchw,nwhu->nchu", "abcd,adce->abce", "ij,jk->ik", "abc,cde->abde"])
def test_einsum(equation):
    left = equation.split("->")[0].split(",")
    size = dict(zip("abcdehijknuw", (2, 3, 4, 5, 6, 4, 2, 3, 4, 2, 3, 5), strict=True))
    x, y = (RNG.standard_normal([size[c] for c in term]).astype(np.float32) for term in left)
    agree(linear.einsum((x, y), equation), np.einsum(equation, x, y), 1e-5)


@pytest.mark.parametrize("kind", [None, "float", "bool"])
def test_attention(kind):
    q, k, v = (RNG.standard_normal((2, 3, n, d)).astype(np.float32) for n, d in ((5, 8), (7, 8), (7, 4)))
    mask = {
        None: None,
        "float": RNG.standard_normal((5, 7)).astype(np.float32),
        "bool": RNG.random((2, 1, 5, 7)) > 0.3,
    }[kind]
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(a) for a in (q, k, v)), attn_mask=None if mask is None else torch.from_numpy(mask)
    )
    agree(linear.scaled_dot_product_attention(q, k, v, mask), theirs, 1e-5)


def test_reshapes():
    reshape, reshape17 = tensor_transformation.reshape, tensor_transformation.reshape_ios17
    assert reshape(X, np.array([0, -1, 0, 1])).shape == (2, 18, 4, 1)
    assert reshape17(np.ones((2, 50)), np.array([1, 0, -1, 0])).shape == (1, 1, 2, 50)
    with pytest.raises(ValueError, match="needs the rank of x"):
        reshape(np.ones((2, 50)), np.array([1, 0, -1, 0]))
    like = tensor_transformation.reshape_like(
        np.ones(30), (np.ones((2, 3)), np.ones((1, 5, 1))), (0, 1), (2, 0), (False, True)
    )
    assert like.shape == (2, 3, 5, 1)
    assert tensor_transformation.expand_dims(X, np.array([0, -1])).shape == (1, 2, 3, 4, 6, 1)
    assert tensor_transformation.squeeze(np.ones((1, 2, 1)), np.array([0, 1])).shape == (2, 1)
    assert tensor_transformation.squeeze(np.ones((1, 2, 1))).shape == (2,)
    assert tensor_transformation.flatten2d(X, 2).shape == (6, 24)


def test_slices():
    by_index = tensor_transformation.slice_by_index
    x = np.arange(24).reshape(4, 6)
    np.testing.assert_array_equal(by_index(x, [1, -3], [4, 6], stride=[2, 1]), x[1:4:2, -3:6])
    np.testing.assert_array_equal(by_index(x, [3, 5], [0, 0], [-1, -2], end_mask=[False, True]), x[3:0:-1, 5::-2])
    np.testing.assert_array_equal(by_index(x, [2, 1], [0, 4], squeeze_mask=[True, False]), x[2, 1:4])
    assert by_index(x, [2, 1], [0, 0], squeeze_mask=[True, True]) == x[2, 1]
    np.testing.assert_array_equal(by_index(x, [2, 1], [3, 4], begin_mask=[True, True]), x[:3, :4])
    np.testing.assert_array_equal(tensor_transformation.slice_by_size(x, [1, -2], [2, -1]), x[1:3, -2:])
    with pytest.raises(IndexError, match="5 elements from 2"):
        tensor_transformation.slice_by_size(x, [2, 0], [5, 6])
    y = tensor_transformation.slice_update(x, np.zeros((2, 3), int), [0, 1], [4, 6], [2, 2])
    assert (y[::2, 1::2] == 0).all()
    assert x[0, 1] == 1


def test_spatial_rearrangements():
    x = RNG.standard_normal((2, 8, 4, 6)).astype(np.float32)
    t = torch.from_numpy(x)
    agree(tensor_transformation.pixel_shuffle(x, 2), torch.nn.functional.pixel_shuffle(t, 2))
    agree(tensor_transformation.pixel_unshuffle(x, 2), torch.nn.functional.pixel_unshuffle(t, 2))
    deep = tensor_transformation.space_to_depth(x, 2)
    assert deep.shape == (2, 32, 2, 3)
    np.testing.assert_array_equal(deep[:, 8:16, 0, 0], x[:, :, 0, 1])  # TensorFlow: offsets are the slower part
    np.testing.assert_array_equal(tensor_transformation.depth_to_space(deep, 2), x)
    blocks = tensor_transformation.space_to_batch(x, np.array([2, 3]), np.array([[0, 0], [2, 1]]))
    assert blocks.shape == (12, 8, 2, 3)
    np.testing.assert_array_equal(blocks[2 * 2 : 2 * 3, :, 0, 0], x[:, :, 0, 0])
    np.testing.assert_array_equal(
        tensor_transformation.batch_to_space(blocks, np.array([2, 3]), np.array([[0, 0], [2, 1]])), x
    )


def test_sequences_and_windows():
    x = np.arange(12).reshape(3, 4)
    y = tensor_transformation.reverse_sequence(x, np.array([0, 2, 4]), seq_axis=1, batch_axis=0)
    assert y.tolist() == [[0, 1, 2, 3], [5, 4, 6, 7], [11, 10, 9, 8]]
    np.testing.assert_array_equal(tensor_transformation.reverse(x, np.array([-1])), x[:, ::-1])
    np.testing.assert_array_equal(tensor_transformation.reverse(x), x[::-1, ::-1])
    windows = tensor_transformation.sliding_windows(x, axis=1, size=2, stride=2)
    assert windows.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]


def test_joining_and_splitting():
    a, b = np.array([[1, 2], [3, 4]]), np.array([[7, 8], [9, 10]])
    assert tensor_operation.concat((a, b), 0, interleave=True).tolist() == [[1, 2], [7, 8], [3, 4], [9, 10]]
    assert tensor_operation.concat((a, b), -1, interleave=True).tolist() == [[1, 7, 2, 8], [3, 9, 4, 10]]
    assert tensor_operation.concat((np.int32(1), np.int32(2)), 0).tolist() == [1, 2]
    assert [p.shape for p in tensor_operation.split(X, 3, split_sizes=np.array([1, 2, 3]))] == [
        (2, 3, 4, 1),
        (2, 3, 4, 2),
        (2, 3, 4, 3),
    ]
    assert len(tensor_operation.split(X, 1, num_splits=3)) == 3
    with pytest.raises(ValueError, match="do not make up"):
        tensor_operation.split(X, 3, split_sizes=np.array([1, 2]))


@pytest.mark.parametrize(
    ("mode", "theirs"), [("constant", "constant"), ("reflect", "reflect"), ("replicate", "replicate")]
)
def test_padding(mode, theirs):
    y = tensor_operation.pad(X, np.array([1, 2, 3, 1]), mode, np.float32(0))
    agree(y, torch.nn.functional.pad(T, (3, 1, 1, 2), theirs))
    with pytest.raises(ValueError, match=r"cannot pad|cannot reflect"):
        tensor_operation.pad(X, np.array([1, 2, 6, 1, 1]) if mode != "reflect" else np.array([6, 6]), mode)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumulative_sums(exclusive, reverse):
    x = np.array([[1, 2, 3], [4, 5, np.inf]], np.float32)
    expected = {
        (False, False): [[1, 3, 6], [4, 9, np.inf]],
        (True, False): [[0, 1, 3], [0, 4, 9]],
        (False, True): [[6, 5, 3], [np.inf, np.inf, np.inf]],
        (True, True): [[5, 3, 0], [np.inf, np.inf, 0]],
    }[exclusive, reverse]
    assert tensor_operation.cumsum(x, 1, exclusive, reverse).tolist() == expected


def test_making_tensors():
    assert tensor_operation.range_1d(1.0, 2.0, 0.25, out=out("fp32", None)).tolist() == [1, 1.25, 1.5, 1.75]
    assert tensor_operation.range_1d(5, 0, -2, out=out("int32", None)).tolist() == [5, 3, 1]
    y = tensor_operation.one_hot(np.array([0, 2, 3, -1]), 3, axis=0, on_value=np.float32(9))
    assert y.tolist() == [[9, 0, 0, 0], [0, 0, 0, 0], [0, 9, 0, 0]]
    assert tensor_operation.non_zero(np.array([[0, 2], [3, 0]])).tolist() == [[0, 1], [1, 0]]
    np.testing.assert_array_equal(tensor_operation.band_part(np.ones((4, 5)), 1, 0), np.tri(4, 5) - np.tri(4, 5, -2))
    np.testing.assert_array_equal(tensor_operation.band_part(np.ones((4, 5)), -1, 2), np.tri(4, 5, 2))
    assert tensor_operation.fill_like(X, np.bool_(True)).dtype == np.bool_


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8])
def test_sorting_keeps_equal_elements_in_order(dtype):
    x = np.array([3, 1, 3, 0, 1], dtype)
    assert tensor_operation.argsort(x, out=out("int32", 5)).tolist() == [0, 2, 1, 4, 3]
    assert tensor_operation.argsort(x, ascending=True, out=out("int32", 5)).tolist() == [3, 1, 4, 0, 2]
    values, indices = tensor_operation.topk(x, k=2, output_indices_dtype="uint16")
    assert (values.tolist(), indices.tolist(), indices.dtype) == ([3, 3], [0, 2], np.uint16)
    assert tensor_operation.topk(x, k=-1, ascending=True, return_indices=False).tolist() == [0, 1, 1, 3, 3]
    with pytest.raises(ValueError, match="more than the 5"):
        tensor_operation.topk(x, k=6)


def test_non_maximum_suppression_keeps_the_best_of_overlapping_boxes():
    boxes = np.array([[[0, 0, 2, 2], [0.1, 0, 2, 2], [5, 5, 2, 2], [9, 9, 1, 1]]], np.float32)
    scores = np.array([[[0.5, 0.1], [0.2, 0.9], [0.7, 0.0], [0.05, 0.0]]], np.float32)
    kept, _, indices, counts = tensor_operation.non_maximum_suppression(boxes, scores, 0.5, 0.1, 3)
    assert indices.tolist() == [[1, 2, -1]]
    assert counts.tolist() == [2]
    np.testing.assert_array_equal(kept[0, :2], boxes[0, [1, 2]])
    *_, indices, counts = tensor_operation.non_maximum_suppression(boxes, scores, 0.5, 0.1, 3, True)
    assert indices.tolist() == [[1, 2, 0]]  # of different classes, so that neither suppresses the other


def test_every_operation_of_coremltools_is_known():
    """Names and opsets as in coremltools' registry; `cond` and the like are part of the executor."""
    import coremltools  # noqa: F401
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    executor = {"const", "cond", "while_loop", "_const_symbolic"}
    releases = {5: 15, 6: 16, 7: 17, 8: 18, 9: 26}
    missing = []
    checked = 0
    for name, versions in SSAOpRegistry.core_ops.items():
        for version, definition in versions.items():
            number = int(getattr(version, "value", version))
            if name in executor or definition is None or number not in {6, 7, 8, 9, 10}:
                continue
            ours = find(name, releases[number - 1])
            parameters = {p for p in definition.input_spec.input_types if not p.startswith("_")}
            if ours is None or not parameters <= set(ours.parameters):
                missing.append((name, number, None if ours is None else parameters - set(ours.parameters)))
            checked += 1
    assert not missing
    assert checked > 600
    assert len(OPERATIONS) >= 165
