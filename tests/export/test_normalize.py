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


def test_conditions_that_were_found_to_hold_are_not_traced_again():
    class Conditional(torch.nn.Module):
        def forward(self, x):
            return x * 2 if (x.shape[0] * 5 + 1) % 7919 != 3 else x

    traced = []

    def trace(*asked):
        traced.append(trace_module(*asked))
        assert traced[-1]._guards_code
        return traced[-1]

    program = capture(Conditional().eval(), {"x": torch.randn(3, 6)}, [ROWS], ["y"], trace=trace).program
    assert not program._guards_code
    assert program.module()(x=torch.ones(5, 6)).tolist() == [[2.0] * 6] * 5


def test_a_model_that_is_bound_to_its_batch_takes_one_row():
    class Bound(torch.nn.Module):
        def forward(self, x):
            return torch.cat([row * (index + 1) for index, row in enumerate(x.split(1))])

    found = capture(Bound().eval(), {"x": torch.randn(3, 6)}, [ROWS], ["y"], trace=trace_module)
    assert found.inputs[0].dims[0].constant == 1
    assert any("one row at a time" in note for note in found.notes)


def test_attention_in_windows_does_without_six_axes():
    class Windows(torch.nn.Module):
        """As Hiera writes it: 2 windows of 3 tokens, one head of one value, q, k and v."""

        def forward(self, x):
            parts = torch.cat([x, x * 2, x - 1], dim=1).reshape(x.shape[0], 3, 2, 3, 1, 1)
            first, second, third = parts.permute(3, 0, 4, 2, 1, 5).unbind(0)
            widest = first.reshape(x.shape[0], 1, 2, 3, 1, 1).max(dim=3).values
            return (widest * second + third).amax(dim=(1, 4)).reshape(x.shape[0], 6) + x.max(dim=1).values[:, None]

    example = {"x": torch.randn(3, 6)}
    module = Windows().eval()
    program = capture(module, example, [ROWS], ["y"], trace=trace_module).program
    other = torch.randn(5, 6)
    torch.testing.assert_close(program.module()(x=other), module(other))
    ranks = [node.meta["val"].dim() for node in program.graph.nodes if hasattr(node.meta.get("val"), "dim")]
    assert max(ranks) <= 5
    assert torch.ops.aten.max.dim not in {node.target for node in program.graph.nodes}


def test_what_nothing_reads_is_dropped_though_its_source_forgot_it():
    class Pooled(torch.nn.Module):
        def forward(self, x):
            doubled = x * 2
            return doubled.select(1, 0), doubled + 1

    def trace(*arguments):
        program = trace_module(*arguments)
        select = next(node for node in program.graph.nodes if node.target is torch.ops.aten.select.int)
        program.graph.output_node().replace_input_with(select, select.args[0])
        del select.args[0].users[select]
        return program

    found = capture(Pooled().eval(), {"x": torch.randn(3, 6)}, [ROWS], ["y", "z"], trace=trace)

    assert torch.ops.aten.select.int not in {node.target for node in found.program.graph.nodes}


def test_numbers_made_of_numbers_are_computed_once():
    class Threshold(torch.nn.Module):
        """As Gemma 3n has it: what lies above a quantile of the normal distribution."""

        def __init__(self):
            super().__init__()
            self.register_buffer("spread", torch.tensor(2.0))

        def forward(self, x):
            quantile = torch.distributions.Normal(0, 1).icdf(torch.tensor(0.95))
            return torch.relu(x - x.mean(dim=-1, keepdim=True) - self.spread * quantile) + x * self.spread.sqrt()

    left = captured(Threshold())

    assert torch.ops.aten.erfinv.default not in left
    assert torch.ops.aten.sqrt.default in left  # the checkpoint's numbers stay its own


def test_a_softmax_subtracts_the_greatest_itself():
    class Sinks(torch.nn.Module):
        """As GPT-OSS has it; a softmax along another axis is none of that."""

        def __init__(self, axis):
            super().__init__()
            self.axis = axis

        def forward(self, x):
            both = torch.cat([x, x[:, :1] + 1], dim=-1)
            return torch.softmax(both - both.max(dim=-1, keepdim=True).values, dim=self.axis)

    assert torch.ops.aten.sub.Tensor not in captured(Sinks(-1))
    assert torch.ops.aten.sub.Tensor in captured(Sinks(0))


def test_complex_numbers_are_pairs_of_real_ones():
    class Turned(torch.nn.Module):
        """As Llama 4 turns queries; everything that may be done to the numbers in between."""

        def forward(self, x):
            angles = torch.arange(x.shape[0])[:, None] * torch.tensor([1.0, 0.1, 0.01])
            turn = torch.polar(torch.ones_like(angles), angles) * 0.5
            numbers = torch.view_as_complex(x.reshape(x.shape[0], 3, 2)) * turn
            shifted = (numbers - turn).unsqueeze(1) + torch.complex(angles, angles + 1)[:, None] + 2
            return torch.view_as_real(-shifted[:, 0] * x[:, :3]).flatten(1) + shifted.imag.sum(dim=1)[:, :1]

    program = captured(Turned())

    assert not program & {torch.ops.aten.polar.default, torch.ops.aten.view_as_complex.default}
