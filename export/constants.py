"""Numbers that do not depend on the inputs, computed once: a format only sees the number, whatever made it."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from .graph import add_constant, replace


def fold_numbers(program: ExportedProgram) -> None:
    """Calls that make one number out of numbers written in the model's code become that number.

    Models state thresholds as formulas (Gemma 3n a quantile of the normal distribution, `aten.erfinv`), which no format
    need be able to compute. Parameters and buffers are no such numbers: they are the checkpoint's.
    """
    known = _written(program)
    folded = []
    for node in program.graph.nodes:
        if _is_number(node) and node.all_input_nodes and all(source in known for source in node.all_input_nodes):
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs).clone()
            folded.append(node)
    for node in reversed(folded):
        if any(user not in known for user in node.users):
            replace(node, add_constant(program, f"number_{node.name}", known[node]))
        elif not node.users:
            program.graph.erase_node(node)


def _written(program: ExportedProgram) -> dict[Node, torch.Tensor]:
    """Tensors of one element that the code of the model states, by their placeholders."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found = {}
    for spec in program.graph_signature.input_specs:
        value = program.constants.get(spec.target) if spec.kind is InputKind.CONSTANT_TENSOR else None
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            found[placeholders[spec.arg.name]] = value
    return found


def _is_number(node: Node) -> bool:
    """Whether a call gives one number, the same each time that it is made, and changes nothing."""
    value = node.meta.get("val")
    if not isinstance(node.target, torch._ops.OpOverload) or not isinstance(value, torch.Tensor):
        return False
    changes = node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags
    return not changes and all(size == 1 for size in map(_known_size, value.shape))


def _known_size(size: int | torch.SymInt) -> int:
    return size if isinstance(size, int) else -1
