"""What a program remembers from run to run is refused; what it only notes down is not, nor are stretched positions."""

from __future__ import annotations

import pytest
import torch
from palmtop.export import export_checkpoint
from palmtop.export.capture import capture, trace_module
from palmtop.runtime.errors import UnsupportedError
from palmtop.runtime.manifest import Dim, TensorSpec

from ..coverage.checkpoints import make_checkpoint
from .conftest import edit_json


class Noting(torch.nn.Module):
    """Writes down a scale before it reads it, or reads what the run before wrote."""

    def __init__(self, reads_first: bool):
        super().__init__()
        self.reads_first = reads_first
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = x.abs().amax(dim=0)
        self.scale.copy_(found + self.scale if self.reads_first else found)
        return x / self.scale


def captured(module: torch.nn.Module):
    spec = TensorSpec("x", "float32", (Dim(symbol="batch", min=1), Dim(size=3)))
    return capture(module.eval(), {"x": torch.rand(2, 3) + 1}, [spec], ["y"], trace=trace_module)


def test_a_buffer_that_is_written_before_it_is_read_is_no_state():
    program = captured(Noting(reads_first=False))

    x = torch.tensor([[1.0, -2.0, 4.0], [2.0, 2.0, 2.0]])
    given = program.program.module()(x=x)
    assert not program.program.graph_signature.buffers_to_mutate
    assert torch.equal(given, x / torch.tensor([2.0, 2.0, 4.0]))


def test_a_buffer_that_is_read_first_is_refused():
    with pytest.raises(UnsupportedError, match="The model changes scale when it runs"):
        captured(Noting(reads_first=True))


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0}


@pytest.mark.parametrize(
    "positions",
    [
        pytest.param({**LONG, "original_max_position_embeddings": 36}, id="longrope"),
        pytest.param({"rope_type": "dynamic", "factor": 2.0}, id="dynamic"),
    ],
)
def test_positions_that_are_stretched_for_long_texts_are_exported(tmp_path, positions):
    made = make_checkpoint(tmp_path / "checkpoint", "llama", "text-generation")
    edit_json(
        made.folder / "config.json",
        lambda config: config.update(rope_parameters={"rope_theta": 10000.0, **positions}),
    )

    result = export_checkpoint(made.folder, tmp_path / "out.bundle", to=["onnx"])

    assert [entry.status for entry in result.report.artifacts] == ["passed"]
