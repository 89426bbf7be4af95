"""What coremltools has no word for, or one for known sizes alone, is said with other operations."""

from __future__ import annotations

import pytest
import torch
from palmtop.runtime.manifest import Dim
from torch.nn import functional

from .coreml_models import BATCH, SEQUENCE, Call, captured_module, distance, lowered, run

CHOICES = Dim(symbol="choices", min=1, max=8)


def test_an_identity_matrix_is_as_large_as_the_input(tmp_path):
    module = Call(lambda self, x: x[:, :, None] - torch.eye(x.shape[1], dtype=x.dtype)[None])
    program = lowered(captured_module(module, (BATCH, SEQUENCE)), tmp_path / "m.mlpackage")
    for length in (3, 9):
        x = torch.randn(1, length)
        assert distance(run(program, {"x": x})["y"], module(x)) == 0


def test_a_layer_of_one_output_without_an_axis_of_its_own(tmp_path):
    module = Call(lambda self, x: functional.linear(torch.softmax(x, -1), torch.arange(6.0) / 5))
    program = lowered(captured_module(module, (BATCH, SEQUENCE, Dim(size=6))), tmp_path / "m.mlpackage")
    x = torch.randn(1, 5, 6)
    assert distance(run(program, {"x": x})["y"], module(x)) < 1e-6


@pytest.mark.parametrize(
    "windows",
    [
        {"kernel_size": (3, 1), "padding": (1, 0)},
        {"kernel_size": (2, 3), "dilation": (1, 2), "padding": (0, 1), "stride": (2, 1)},
    ],
    ids=["along one axis", "along two, apart and in steps"],
)
def test_windows_are_cut_out_of_any_number_of_rows(tmp_path, windows):
    module = Call(lambda self, x: functional.unfold(x, **windows))
    program = lowered(captured_module(module, (CHOICES, Dim(size=4), SEQUENCE, Dim(size=5))), tmp_path / "m.mlpackage")
    for rows, length in ((3, 6), (1, 9)):
        x = torch.randn(rows, 4, length, 5)
        assert distance(run(program, {"x": x})["y"], module(x)) == 0


def test_a_value_is_not_taken_for_a_word_of_its_name(tmp_path):
    def forward(self, x):
        bounded = torch.tanh(x)
        return functional.gelu(bounded * 3, approximate="tanh"), bounded

    module = Call(forward)
    captured = captured_module(module, (BATCH, SEQUENCE), ("y", "bounded"))
    assert "tanh" in {node.name for node in captured.program.graph.nodes}
    program = lowered(captured, tmp_path / "m.mlpackage")
    x = torch.linspace(-4, 4, 30)[None]
    found, (expected, bounded) = run(program, {"x": x}), module(x)
    assert distance(found["y"], expected) < 1e-6
    assert distance(found["bounded"], bounded) < 1e-6
