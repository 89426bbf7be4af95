"""Tools of those who rewrite a captured graph: new calls, one in another's place, comparing sizes that are symbols."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Graph, Node


def insert(graph: Graph, before: Node, target: Callable, args: tuple, kwargs: dict | None = None) -> Node:
    """A new call before a node, with its fake value, and the module of the node it serves."""
    with graph.inserting_before(before):
        node = graph.call_function(target, args, kwargs or {})
    values = torch.fx.node.map_arg((args, kwargs or {}), lambda argument: argument.meta["val"])
    mode = next(
        (leaf.fake_mode for leaf in torch.utils._pytree.tree_leaves(values) if hasattr(leaf, "fake_mode")), None
    )
    if mode is None:
        mode = before.meta["val"].fake_mode
    with mode, torch.no_grad():
        node.meta["val"] = target(*values[0], **values[1])
    for key in ("nn_module_stack", "stack_trace"):
        if key in before.meta:
            node.meta[key] = before.meta[key]
    return node


def replace(node: Node, other: Node) -> None:
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def same_shape(first: torch.Size, second: torch.Size) -> bool:
    """Equal, symbols compared as expressions: no guard is added by asking."""
    return len(first) == len(second) and all(map(same_size, first, second))


def same_size(first: int | torch.SymInt, second: int | torch.SymInt) -> bool:
    return str(first) == str(second)


def is_bool(node: Node) -> bool:
    return node.meta["val"].dtype == torch.bool


def list_readers(program: ExportedProgram) -> None:
    """Let every node know all that read it.

    torch 2.13 forgets one now and then (in Jina embeddings v3 the pooler, which nothing reads), and cannot erase it.
    """
    for node in program.graph.nodes:
        for source in node.all_input_nodes:
            source.users.setdefault(node)


def drop_dead_code(program: ExportedProgram) -> None:
    """Erase calls that nothing reads (placeholders stay)."""
    program.graph.eliminate_dead_code()


def rename_outputs(program: ExportedProgram) -> None:
    """The signature knows outputs by node name; a pass may have put another node in an output's place."""
    specs = program.graph_signature.output_specs
    for spec, node in zip(specs, program.graph.output_node().args[0], strict=True):
        if isinstance(node, Node) and spec.arg.name != node.name:
            spec.arg = dataclasses.replace(spec.arg, name=node.name)


class Builder:
    """Writes calls before one node: `build(aten.add.Tensor, x, y)`."""

    def __init__(self, node: Node):
        self._node = node

    def __call__(self, target: Callable[..., Any], *args: Any) -> Node:
        return insert(self._node.graph, self._node, target, args)


def value_of(node: Any) -> torch.Tensor:
    """The fake tensor that a node gives."""
    return node.meta["val"]


def arguments_of(node: Node) -> dict[str, Any]:
    """All arguments of a call by name, defaults included."""
    found = {}
    for place, argument in enumerate(node.target._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        found[argument.name] = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, default)
    return found


def add_constant(program: ExportedProgram, name: str, value: torch.Tensor) -> Node:
    """The placeholder of a constant of that name, added to the program when it has none."""
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        if node.target == f"b_{name}":
            return node
    with program.graph.inserting_before(placeholders[0]):
        node = program.graph.placeholder(f"b_{name}")
    mode = next(other.meta["val"].fake_mode for other in placeholders if hasattr(other.meta.get("val"), "fake_mode"))
    node.meta["val"] = mode.from_tensor(value, static_shapes=True)
    specs = program.graph_signature.input_specs
    specs.insert(0, InputSpec(InputKind.BUFFER, TensorArgument(node.name), name, True))
    program.state_dict[name] = value
    return node
