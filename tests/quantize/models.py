"""A small model with every kind of weight that a plan may name."""

from __future__ import annotations

import numpy as np
import torch
from palmtop.export.capture import Captured, capture, trace_module
from palmtop.export.normalize import normalize
from palmtop.runtime.manifest import Dim, TensorSpec

BATCH, SEQUENCE = Dim(symbol="batch", min=1), Dim(symbol="sequence", min=2, max=48)


class Small(torch.nn.Module):
    """Ids -> a table, two layers that read one activation, one that lies transposed, and a table of few entries."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.table = torch.nn.Embedding(200, 64)
        self.kind = torch.nn.Embedding(2, 64)
        self.query = torch.nn.Linear(64, 96)
        self.key = torch.nn.Linear(64, 96)
        self.down = torch.nn.Parameter(torch.randn(96, 64) * 0.2)
        self.bias = torch.nn.Parameter(torch.randn(64))
        self.table.weight.data[:, 5] *= 20  # one channel that is far larger than the others, as in trained models

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.table(x) + self.kind(torch.zeros_like(x))
        mixed = torch.tanh(0.1 * self.query(hidden)) * self.key(hidden)
        flat = torch.addmm(self.bias, mixed.reshape(-1, 96), self.down)
        return flat.reshape(hidden.shape)


class TiedHead(torch.nn.Module):
    """A table of 200 x 64, read by row, and what it gives multiplied with it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.table = torch.nn.Embedding(200, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(torch.tanh(self.table(x)), self.table.weight)


def captured(module: torch.nn.Module | None = None) -> Captured:
    """The model, captured as the export does it, its input named `x` and its output `y`."""
    module = (module or Small()).eval().requires_grad_(False)
    spec = TensorSpec("x", "int64", (BATCH, SEQUENCE))
    result = capture(module, {"x": torch.zeros(2, 7, dtype=torch.int64)}, [spec], ["y"], trace=trace_module)
    normalize(result.program)
    return result


def feeds(count: int = 6, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Rows of 3 to 20 ids."""
    random = np.random.default_rng(seed)
    return [{"x": random.integers(0, 200, (1, random.integers(3, 21)))} for _ in range(count)]
