"""Tools of those who rewrite a captured graph: new calls, one in another's place, comparing sizes that are symbols."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch.export import ExportedProgram
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
