"""Networks that fp32 computes well and fp16 does not, each for one known reason."""

from __future__ import annotations

import torch
from torch import nn


class Rms(nn.Module):
    """Llama's norm, as Transformers writes it."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class LoudChannel(nn.Module):
    """A residual stream with one channel near 600, as trained Llamas have: its square is beyond fp16 in every norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.quiet = nn.Linear(16, 16)
        self.norm = Rms(16)
        self.head = nn.Linear(16, 4)
        with torch.no_grad():
            self.embed.bias[3] = 600.0
            self.quiet.weight.copy_(torch.eye(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.quiet(self.embed(x))))


class Attention(nn.Module):
    """Attention by hand, scaled after the product of queries and keys that are `gain` times too large."""

    def __init__(self, gain: float):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.gain = gain
        with torch.no_grad():
            for layer in (self.query, self.key):
                layer.weight.mul_(gain)
                layer.bias.mul_(gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2)
        return torch.softmax(scores / self.gain**2, -1) @ self.value(x)


class LoudScores(nn.Module):
    """Two attentions, the first of which has scores beyond fp16."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.loud = Attention(500.0)
        self.fine = Attention(1.0)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.fine(self.loud(self.embed(x))))


class LoudMiddle(nn.Module):
    """A perceptron of four layers; what the second gives, and the third reads, is beyond fp16."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.down, self.last = (nn.Linear(16, 16) for _ in range(4))
        with torch.no_grad():
            self.first.weight.mul_(5)
            self.up.weight.mul_(1e5)
            self.down.weight.mul_(1e-4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.down(self.up(torch.tanh(self.first(x))))))


class Offset(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 3000.0) - 3000.0


class LostDigits(nn.Module):
    """Nothing overflows; what an offset of 3000 leaves of numbers near 1 is a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)
        self.offset = Offset()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.offset(self.first(x)))
