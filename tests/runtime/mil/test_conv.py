"""conv and conv_transpose agree with PyTorch in every form that both have; the rest is checked by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from palmtop.runtime.mil.ops import conv as module
from palmtop.runtime.mil.ops.conv import conv, conv_quantized, conv_transpose

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def close(ours: np.ndarray, theirs: torch.Tensor) -> None:
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kernel", "outputs", "groups", "stride", "dilation", "pad"),
    [
        ((2, 4, 15), (3,), 6, 1, [2], [1], [1]),
        ((2, 4, 15), (3,), 6, 2, [1], [3], [0]),
        ((1, 8, 9, 7), (3, 3), 8, 8, [1, 1], [1, 1], [1, 1]),  # depthwise
        ((2, 4, 9, 7), (3, 2), 12, 4, [2, 1], [1, 2], [1, 0]),  # depthwise, three outputs a channel
        ((2, 6, 9, 7), (1, 1), 4, 1, [1, 1], [1, 1], [0, 0]),
        ((2, 6, 9, 7), (1, 1), 4, 2, [2, 2], [1, 1], [0, 0]),
        ((1, 3, 16, 16), (4, 4), 5, 1, [4, 4], [1, 1], [0, 0]),  # patches
        ((1, 3, 6, 7, 8), (2, 3, 1), 4, 1, [1, 2, 3], [2, 1, 1], [1, 0, 2]),
    ],
)
def test_conv_is_pytorchs(shape, kernel, outputs, groups, stride, dilation, pad):
    x, weight, bias = normal(*shape), normal(outputs, shape[1] // groups, *kernel), normal(outputs)
    theirs = CONV[len(kernel)](torch.tensor(x), torch.tensor(weight), torch.tensor(bias), stride, pad, dilation, groups)
    ours = conv(
        x,
        weight,
        bias,
        strides=np.array(stride),
        pad_type="custom",
        pad=np.repeat(pad, 2),
        dilations=np.array(dilation),
        groups=np.int32(groups),
    )
    close(ours, theirs)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_conv_in_many_pieces_is_conv_in_one(monkeypatch, groups):
    x, weight = normal(2, 8, 11, 10), normal(8, 8 // groups, 3, 3)
    whole = conv(x, weight, groups=groups)
    monkeypatch.setattr(module, "_BUFFER", 50)
    np.testing.assert_allclose(conv(x, weight, groups=groups), whole, atol=1e-5)


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_puts_the_odd_element_after_and_same_lower_before(kernel, stride):
    x, weight = normal(1, 2, 10, 7), normal(3, 2, kernel, kernel)
    totals = [max(0, (-(-n // stride) - 1) * stride + kernel - n) for n in (10, 7)]
    less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
    for pad_type, (high, low) in {"same": (less, more), "same_lower": (more, less)}.items():
        wide = F.pad(torch.tensor(x), (high[1], low[1], high[0], low[0]))
        ours = conv(x, weight, pad_type=pad_type, strides=[stride] * 2)
        assert ours.shape[2:] == (-(-10 // stride), -(-7 // stride))
        close(ours, F.conv2d(wide, torch.tensor(weight), stride=stride))


@pytest.mark.parametrize(
    ("shape", "kernel", "outputs", "groups", "stride", "dilation", "pad"),
    [
        ((2, 4, 7), (4,), 6, 1, [2], [1], [1]),
        ((2, 4, 7), (3,), 6, 2, [1], [2], [0]),
        ((1, 4, 5, 6), (3, 3), 4, 4, [2, 3], [1, 1], [1, 0]),
        ((1, 4, 5, 6), (2, 2), 6, 1, [3, 3], [1, 1], [0, 0]),  # gaps between the inputs
        ((1, 2, 3, 4, 5), (2, 3, 2), 3, 1, [2, 1, 2], [1, 2, 1], [0, 1, 1]),
    ],
)
def test_conv_transpose_is_pytorchs(shape, kernel, outputs, groups, stride, dilation, pad):
    x, weight, bias = normal(*shape), normal(shape[1], outputs // groups, *kernel), normal(outputs)
    theirs = TRANSPOSED[len(kernel)](
        torch.tensor(x), torch.tensor(weight), torch.tensor(bias), stride, pad, 0, groups, dilation
    )
    options = {"strides": stride, "dilations": dilation, "groups": groups}
    close(conv_transpose(x, weight, bias, pad_type="custom", pad=np.repeat(pad, 2), **options), theirs)
    if not any(pad):
        close(conv_transpose(x, weight, bias, **options), theirs)


def test_conv_transpose_reaches_a_given_output_shape_like_output_padding():
    x, weight, bias = normal(1, 4, 5, 6), normal(4, 3, 3, 3), normal(3)
    theirs = F.conv_transpose2d(
        torch.tensor(x), torch.tensor(weight), torch.tensor(bias), stride=3, padding=1, output_padding=2
    )
    ours = conv_transpose(
        x, weight, bias, strides=[3, 3], pad_type="custom", pad=[1, 1, 1, 1], output_shape=np.array(theirs.shape)
    )
    close(ours, theirs)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (2, 2), (4, 3), (2, 3)])
def test_conv_transpose_same_is_the_gradient_of_conv_same(kernel, stride):
    y, weight = normal(1, 3, 4, 5), normal(3, 2, kernel, kernel)
    ours = conv_transpose(y, weight, pad_type="same", strides=[stride] * 2)
    assert ours.shape == (1, 2, 4 * stride, 5 * stride)
    x = normal(*ours.shape)
    forward = conv(x, weight, pad_type="same", strides=[stride] * 2)
    assert np.vdot(forward, y) == pytest.approx(np.vdot(x, ours), rel=1e-4)


def test_conv_quantized_is_conv_of_the_dequantized_weights():
    x, stored = normal(1, 2, 5, 5), np.arange(54, dtype=np.uint8).reshape(3, 2, 3, 3)
    scale, shift = np.array([0.1, 0.2, 0.3], np.float32), np.array([-1, 0, 1], np.float32)
    dense = stored * scale[:, None, None, None] + shift[:, None, None, None]
    ours = conv_quantized(x, stored, quantization_type="linear", quant_scale=scale, quant_bias=shift)
    np.testing.assert_allclose(ours, conv(x, dense.astype(np.float32)), atol=1e-5)
    with pytest.raises(ValueError, match="lut"):
        conv_quantized(x, stored, quantization_type="lut", quant_scale=scale, quant_bias=shift)


def test_weights_and_windows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not fit x"):
        conv(normal(1, 4, 5, 5), normal(2, 3, 1, 1))
    with pytest.raises(ValueError, match="does not fit 2 elements"):
        conv(normal(1, 4, 2, 5), normal(2, 4, 3, 3))
    with pytest.raises(ValueError, match="pad_type"):
        conv(normal(1, 4, 5, 5), normal(2, 4, 3, 3), pad_type="reflect")
