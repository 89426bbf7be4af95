"""ExecuTorch: axes that vary, several at a time and up to their bounds."""

from __future__ import annotations

import pytest
import torch
from palmtop.runtime.backends.executorch_file import describe
from palmtop.runtime.manifest import Dim
from torch import nn

from .executorch_models import BATCH, captured, lowered, run, sequence, size

CHOICES = Dim(symbol="choices", min=1, max=8)


class Filter(nn.Module):
    """A convolution along the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.along = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.along(x.transpose(1, 2))).transpose(1, 2)


class Interleaved(nn.Module):
    """Numbers that alternate with their negatives, as rotary positions have them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = torch.stack([-x, x + 1], dim=-1)
        return (turned * 2).flatten(-2)


@pytest.mark.parametrize("module", [Filter(), Interleaved()], ids=["convolution", "interleaved"])
def test_two_axes_may_vary_where_xnnpack_reshapes_with_one(tmp_path, module):
    torch.manual_seed(0)
    program = captured(module, (CHOICES, sequence(20), size(8)), torch.randn(4, 7, 8))
    artifact, path = lowered(program, tmp_path)
    assert describe(path)["methods"]["forward"]["delegates"], "what XNNPACK can take stays with it"
    for choices, length in ((2, 7), (8, 20), (3, 4)):
        x = torch.randn(choices, length, 8)
        torch.testing.assert_close(run(artifact, tmp_path, x), module(x), rtol=1e-5, atol=1e-5)


def test_a_convolution_takes_few_numbers_and_many(tmp_path):
    """For PyTorch more than 20480 are many."""
    torch.manual_seed(0)
    module = Filter()
    program = captured(module, (BATCH, sequence(4000), size(8)), torch.randn(2, 7, 8))
    artifact, _ = lowered(program, tmp_path)
    for length in (7, 3000):
        x = torch.randn(1, length, 8)
        torch.testing.assert_close(run(artifact, tmp_path, x), module(x), rtol=1e-5, atol=1e-5)


class Merged(nn.Module):
    """Axes that are merged, and told apart again by what is left."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        products = (x[:, :, None] * x[:, None]).reshape(-1, 8)
        return products.reshape(x.shape[1], products.shape[0] // x.shape[1], 8)[:, 1:]


def test_memory_is_planned_for_sizes_that_come_of_division(tmp_path):
    program = captured(Merged(), (BATCH, Dim(symbol="sequence", min=2, max=64), size(8)), torch.randn(2, 7, 8))
    artifact, path = lowered(program, tmp_path)
    planned = describe(path)["methods"]["forward"]["memory"]
    assert planned < 4 * 64 * 64 * 8 * 4, "a few tensors of products, each (64, 64, 8)"
    x = torch.randn(1, 64, 8)
    torch.testing.assert_close(run(artifact, tmp_path, x), Merged()(x), rtol=1e-5, atol=1e-5)


class Filled(nn.Module):
    """Keys put together in memory that was asked for empty (DeepSeek V3)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = x.new_empty(x.shape[0], x.shape[1], 12)
        both[..., :8] = x
        both[..., 8:] = x[..., :4] + 1
        return both * 2


def test_empty_memory_is_of_any_length(tmp_path):
    program = captured(Filled(), (size(1), sequence(20), size(8)), torch.randn(1, 7, 8))
    artifact, _ = lowered(program, tmp_path)
    for length in (4, 20):
        x = torch.randn(1, length, 8)
        torch.testing.assert_close(run(artifact, tmp_path, x), Filled()(x), rtol=1e-5, atol=1e-5)


class Scaled(nn.Module):
    """Numbers times a learned one, given as its logarithm (CLIP)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = self.scale.exp()
        rest = (x + 1).pow(2).sum(-1, keepdim=True).pow(0.5)  # a kernel of ExecuTorch's own between two delegates
        return torch.relu(x / rest * scale), scale


def test_a_number_goes_from_one_delegate_to_the_next(tmp_path):
    program = captured(Scaled(), (Dim(size=2), size(8)), torch.randn(2, 8), outputs=2)
    artifact, _ = lowered(program, tmp_path)
    x = torch.randn(2, 8)
    torch.testing.assert_close(run(artifact, tmp_path, x), Scaled()(x)[0], rtol=1e-5, atol=1e-5)


class Blocks(nn.Module):
    """A sequence filled up to a multiple of eight, in blocks of eight (LongT5)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(x.shape[1] + -x.shape[1] % 8).reshape(-1, 8)
        return x.sum(dim=1, keepdim=True) * places.sum(dim=1)[None, :, None]


def test_a_sequence_is_filled_up_to_a_multiple_of_a_block(tmp_path):
    program = captured(Blocks(), (size(1), Dim(symbol="sequence", min=2, max=40), size(4)), torch.randn(1, 13, 4))
    artifact, _ = lowered(program, tmp_path)
    for length in (3, 8, 17, 40):
        x = torch.randn(1, length, 4)
        torch.testing.assert_close(run(artifact, tmp_path, x), Blocks()(x), rtol=1e-5, atol=1e-5)


class Parts(nn.Module):
    """Blocks of eight whose number follows from the length, as reshapes find it out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filled = nn.functional.pad(x, (0, 0, 0, 8 - x.shape[1] % 8), value=1.0)
        return filled.reshape(x.shape[0], x.shape[1] // 8 + 1, -1, x.shape[2]).exp().sum(dim=2)


def test_a_reshape_is_bounded_by_what_it_reshapes(tmp_path):
    program = captured(Parts(), (size(1), Dim(symbol="sequence", min=8, max=40), size(4)), torch.randn(1, 13, 4))
    artifact, _ = lowered(program, tmp_path)
    for length in (8, 17, 40):
        x = torch.randn(1, length, 4)
        torch.testing.assert_close(run(artifact, tmp_path, x), Parts()(x), rtol=1e-5, atol=1e-5)


class Greatest(nn.Module):
    """A softmax of scores and the greatest of them, in four axes."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(1, 4, 32, 8))
        self.sinks = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = x.unflatten(-1, (4, 8)).transpose(1, 2) @ self.keys.transpose(2, 3)
        both = torch.cat([scores, self.sinks.reshape(1, -1, 1, 1).expand(1, -1, x.shape[1], -1)], dim=-1)
        return torch.softmax(both + both.max(dim=-1, keepdim=True).values, dim=-1)


def test_the_greatest_along_an_axis_is_found_in_any_layout(tmp_path):
    module = Greatest()
    program = captured(module, (size(1), sequence(20), size(32)), torch.randn(1, 7, 32))
    artifact, _ = lowered(program, tmp_path)
    for length in (2, 20):
        x = torch.randn(1, length, 32)
        torch.testing.assert_close(run(artifact, tmp_path, x), module(x), rtol=1e-5, atol=1e-5)


class Picked(nn.Module):
    """A softmax along a row of some of a convolution's channels (MobileViT V2)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 9, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores, values = torch.split(self.mix(x), [1, 8], dim=1)
        return values * torch.softmax(scores, dim=-1)


def test_a_softmax_of_pictures_is_along_the_axis_that_it_says(tmp_path):
    module = Picked()
    program = captured(module, (size(1), size(3), size(4), size(16)), torch.randn(1, 3, 4, 16))
    artifact, _ = lowered(program, tmp_path)
    x = torch.randn(1, 3, 4, 16)
    torch.testing.assert_close(run(artifact, tmp_path, x), module(x), rtol=1e-5, atol=1e-5)
