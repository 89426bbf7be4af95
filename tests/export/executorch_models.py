"""Small modules, and checkpoints, captured for the ExecuTorch target's tests."""

from __future__ import annotations

from pathlib import Path

import torch
from palmtop.export.capture import Captured, capture, trace_module
from palmtop.export.methods import capture_subject
from palmtop.export.source import open_source
from palmtop.export.subject import Subject, checkpoint_subject
from palmtop.export.targets import Options
from palmtop.export.targets.executorch import lower, plan
from palmtop.runtime.manifest import Artifact, Dim, TensorSpec
from palmtop.runtime.session import Session

BATCH = Dim(symbol="batch", min=1)
IDENTITY = "0123abcd"


def sequence(longest: int) -> Dim:
    return Dim(symbol="sequence", min=1, max=longest)


def size(number: int) -> Dim:
    return Dim(size=number)


class Block(torch.nn.Module):
    """A linear layer, layer norm, attention over the sequence and a GELU, 16 wide."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = torch.nn.Linear(16, 16)
        self.norm = torch.nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.norm(self.dense(x)).unflatten(-1, (2, 8)).transpose(1, 2)
        mixed = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
        return torch.nn.functional.gelu(mixed.transpose(1, 2).flatten(2))


class Convolutions(torch.nn.Module):
    """What XNNPACK's own passes rewrite: batch norm, activations, pooling, long concatenations, 1-D convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.second = torch.nn.Conv2d(8, 8, 3, stride=2)
        self.along = torch.nn.Conv1d(8, 4, 3)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.max_pool2d(torch.relu(self.norm(self.first(image))), 2)
        parts = [self.second(x).flatten(2) * scale for scale in (1.0, -0.5, 0.25, 2.0, 3.0, 0.1)]
        return self.along(torch.cat(parts, dim=2))


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(6, 8, batch_first=True)
        self.out = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(x)[0])


def captured(module: torch.nn.Module, dims: tuple[Dim, ...], example: torch.Tensor, outputs: int = 1) -> Captured:
    """A module of one float input, captured under the names `x` and `output` (`output_0`, ...)."""
    names = ["output"] if outputs == 1 else [f"output_{place}" for place in range(outputs)]
    named = _Named(module.eval().requires_grad_(False))
    return capture(named, {"x": example}, [TensorSpec("x", "float32", dims)], names, trace=trace_module)


class _Named(torch.nn.Module):
    """Calls its one input `x`, and is seen through like palmtop's own wrapper."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def lowered(program: Captured, folder: Path, **options) -> tuple[Artifact, Path]:
    """Plan and lower into a folder."""
    artifact = plan(program, Options(**options))
    path = folder / artifact.path
    lower(program, artifact, IDENTITY, path)
    return artifact, path


def run(artifact: Artifact, folder: Path, x: torch.Tensor) -> torch.Tensor:
    """The artifact's first output for one input."""
    outputs = Session.open(folder, artifact, IDENTITY, threads=1).run({"x": x.numpy()})
    return torch.from_numpy(next(iter(outputs.values())))


def capture_checkpoint(folder: Path, task: str) -> tuple[Subject, Captured]:
    """A checkpoint folder, captured for a task."""
    subject = checkpoint_subject(open_source(str(folder), task=task), None, None)
    return subject, capture_subject(subject)
