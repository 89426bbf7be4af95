"""Small changes to a captured program: a new constant, another value for a weight, a new operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node


def add_buffer(program: ExportedProgram, name: str, value: torch.Tensor) -> Node:
    """A new constant of a program, as a persistent buffer in its `state_dict`, and the node that reads it."""
    graph, signature = program.graph, program.graph_signature
    taken = {node.name for node in graph.nodes}
    identifier = name.replace(".", "_")
    while identifier in taken:
        identifier += "_"
    kinds = [spec.kind for spec in signature.input_specs]
    place = next((i for i, kind in enumerate(kinds) if kind not in (InputKind.PARAMETER, InputKind.BUFFER)), len(kinds))
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    anchor = placeholders[place] if place < len(placeholders) else placeholders[-1].next
    with graph.inserting_before(anchor):
        node = graph.placeholder(identifier)
    fake = next(p.meta["val"].fake_mode for p in placeholders if hasattr(p.meta.get("val"), "fake_mode"))
    node.meta["val"] = fake.from_tensor(value, static_shapes=True)
    signature.input_specs.insert(place, InputSpec(InputKind.BUFFER, TensorArgument(node.name), name, persistent=True))
    program.state_dict[name] = value
    return node


def store(program: ExportedProgram, name: str, value: torch.Tensor) -> None:
    """Another value for a parameter or buffer."""
    old = program.state_dict[name]
    parameter = isinstance(old, torch.nn.Parameter)
    program.state_dict[name] = torch.nn.Parameter(value, requires_grad=False) if parameter else value


def insert(before: Node, operation: Callable, arguments: tuple[Any, ...], value: Any) -> Node:
    """A new call before a node, giving `value` (a fake tensor); it counts as part of that node's module."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(operation, arguments)
    node.meta["val"] = value
    for key in ("nn_module_stack", "stack_trace", "from_node"):
        if key in before.meta:
            node.meta[key] = before.meta[key]
    return node
