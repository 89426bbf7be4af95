"""What capture leaves in a graph that no format needs is taken out, and the program still is the model."""

import torch
from palmtop.export.capture import capture, trace_module
from palmtop.runtime.manifest import Dim, TensorSpec

ROWS = TensorSpec("x", "float32", (Dim(symbol="batch", min=1), Dim(size=6)))


def captured(module):
    example = {"x": torch.randn(3, 6)}
    program = capture(module.eval().requires_grad_(False), example, [ROWS], ["y"], trace=trace_module).program
    other = torch.randn(5, 6)
    torch.testing.assert_close(program.module()(x=other), module(other))
    return {node.target for node in program.graph.nodes if node.op == "call_function"}


def test_what_a_loss_leaves_behind_is_dropped():
    class Loss(torch.nn.Module):
        def forward(self, x):
            _, y = torch.broadcast_tensors(x, x * 2)
            return y

    assert torch.ops.aten.broadcast_tensors.default not in captured(Loss())


def test_an_outer_product_of_positions_and_frequencies_is_a_product():
    class Positions(torch.nn.Module):
        def forward(self, x):
            return x + torch.arange(6).outer(torch.linspace(1, 2, 6)).sum(dim=0)

    assert torch.ops.aten.outer.default not in captured(Positions())


def test_a_model_that_is_bound_to_its_batch_takes_one_row():
    class Bound(torch.nn.Module):
        def forward(self, x):
            return torch.cat([row * (index + 1) for index, row in enumerate(x.split(1))])

    found = capture(Bound().eval(), {"x": torch.randn(3, 6)}, [ROWS], ["y"], trace=trace_module)
    assert found.inputs[0].dims[0].constant == 1
    assert any("one row at a time" in note for note in found.notes)
