"""Small models that there is something to quantize of, and what the tests of quantization ask of their bundles."""

from __future__ import annotations

from pathlib import Path

import torch
from palmtop.export import export_module

# Weights of 4,096 numbers or more, so that there is something to quantize.
CONFIG = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
TASKS = (
    "text-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
    "multiple-choice",
    "feature-extraction",
    "sentence-similarity",
)


def files(bundle: Path) -> dict[str, bytes]:
    return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


class Beside(torch.nn.Module):
    """Layers beside each other. What each gives goes through a sine: the larger its gain, the more an error counts."""

    def __init__(self, *gains: float) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.gains = gains
        self.layers = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in gains)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.sin(gain * layer(x)) for gain, layer in zip(self.gains, self.layers, strict=True)], -1)


def export_layers(module: Beside, destination: Path, **options):
    generator = torch.Generator().manual_seed(0)
    example, *others = ({"x": torch.randn(16, 64, generator=generator)} for _ in range(5))
    return export_module(module, example, destination, verify_inputs=others, **{"to": ["onnx"], **options})


def export_three(gain: float, destination: Path, **options):
    """Three layers, the middle one sensitive."""
    return export_layers(Beside(0.5, gain, 0.5), destination, **options)


def export_many(destination: Path, min_agreement: float = 0.995, **options):
    """Layers of all sensitivities, which a search needs several trials for."""
    module = Beside(1, 3, 5, 8, 12, 20, 30, 50)
    return export_layers(module, destination, quantize="auto", min_agreement=min_agreement, **options)
