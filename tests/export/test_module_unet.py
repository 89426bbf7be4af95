"""A diffusion U-Net of the user's own: convolutions, group norms, attention, skips, and a time that becomes sines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from palmtop.export import export_module
from palmtop.runtime.bundle import Bundle
from torch import nn
from torch.nn import functional as F

TARGETS = ("onnx", "coreml", "executorch")
WIDTH = 16


class Block(nn.Module):
    """Two convolutions around what the time says, added to their input."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, inside), nn.Conv2d(inside, outside, 3, padding=1)
        self.time = nn.Linear(4 * WIDTH, outside)
        self.norm2, self.conv2 = nn.GroupNorm(4, outside), nn.Conv2d(outside, outside, 3, padding=1)
        self.skip = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x, time):
        hidden = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(hidden)))


class Attention(nn.Module):
    """Every pixel looks at every other."""

    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(4, width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        batch, width, height, across = x.shape
        parts = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, width // self.heads, height * across)
        query, key, value = parts.transpose(-1, -2).unbind(1)
        found = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(found.transpose(-1, -2).reshape(batch, width, height, across))


class UNet(nn.Module):
    """The noise in a picture, as predicted at a time of the diffusion."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.SiLU(), nn.Linear(4 * WIDTH, 4 * WIDTH))
        self.first = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.down1, self.half1 = Block(WIDTH, WIDTH), nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.down2, self.half2 = Block(WIDTH, 2 * WIDTH), nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, stride=2, padding=1)
        self.middle, self.attention = Block(2 * WIDTH, 2 * WIDTH), Attention(2 * WIDTH)
        self.up2, self.up1 = Block(4 * WIDTH, WIDTH), Block(2 * WIDTH, WIDTH)
        self.norm, self.last = nn.GroupNorm(4, WIDTH), nn.Conv2d(WIDTH, 3, 3, padding=1)

    def forward(self, sample, timestep):
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(WIDTH // 2) / (WIDTH // 2))
        angles = timestep[:, None].float() * frequencies[None]
        time = self.embed(torch.cat([angles.sin(), angles.cos()], dim=-1))
        one = self.down1(self.first(sample), time)
        two = self.down2(self.half1(one), time)
        low = self.attention(self.middle(self.half2(two), time))
        two = self.up2(torch.cat([F.interpolate(low, scale_factor=2.0, mode="nearest"), two], dim=1), time)
        one = self.up1(torch.cat([F.interpolate(two, scale_factor=2.0, mode="nearest"), one], dim=1), time)
        return self.last(F.silu(self.norm(one)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.manual_seed(0)
    network = UNet().eval()
    example = {"sample": torch.randn(1, 3, 16, 16), "timestep": torch.tensor([7])}
    bundle = tmp_path_factory.mktemp("unet") / "unet.bundle"
    return network, export_module(network, example, bundle, output_names=["noise"])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("time", [0, 500, 999])
def test_a_diffusion_u_net_is_the_same_at_every_time(made, target, time):
    network, result = made
    sample, timestep = torch.randn(1, 3, 16, 16), torch.tensor([time])
    found = Bundle.open(result.path).open_session(target).run({"sample": sample.numpy(), "timestep": timestep.numpy()})
    with torch.no_grad():
        expected = network(sample, timestep).numpy()
    np.testing.assert_allclose(found["noise"], expected, atol=2e-5)
