"""One graph for every target: the rewrites that all of them need, done once, on the captured program.

Each pass keeps the values that the model computes (to the noise of fp32) and makes the graph smaller or safer:

- `functionalize`: `x.add_(y)` becomes `x = x + y`, which is all that targets know;
- `drop_identities`: dropout in eval mode, assertions, aliases and copies, casts to the dtype a tensor already has;
- `fold_numbers`: numbers that are computed from numbers in the model's code are computed once, here;
- `pairs_of_reals`: complex numbers become their two parts;
- `plain_softmaxes`: a softmax subtracts the greatest number itself, and what did it before is dropped;
- `say_axes`: squeezing says which axes (those of size one for every input), and truth values are summed as integers;
- `fill_by_choice`: one number written where a mask holds is a choice between the two (`x[mask] = 0`);
- `simplify_masks`: attention masks as Transformers builds them (by indexing with `arange`) become a reshape;
- `finite_masks`: boolean attention masks become additive ones, shared by all layers, and "minus infinity" becomes a
  number that fp16 can hold, so that a row with every key masked gives no NaN;
- `prune`: parameters and buffers that nothing reads (a pooler whose output was not asked for).
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from .axes import fewer_axes
from .complex_numbers import pairs_of_reals
from .constants import fold_numbers
from .graph import drop_dead_code, insert, is_bool, list_readers, rename_outputs, replace
from .identities import drop_identities, plain_softmaxes
from .masks import finite_masks, simplify_masks

aten = torch.ops.aten

# Their schemas promise nothing, but they may return a view of their argument.
_MAYBE_VIEWS = {aten.reshape.default, aten.contiguous.default, aten.to.dtype, aten.to.device, aten.dropout.default}


def normalize(program: ExportedProgram) -> ExportedProgram:
    """Run all passes on a program, which may be changed in place, and return the normalised one."""
    list_readers(program)
    program = functionalize(program)
    for run in (
        drop_identities,
        fold_numbers,
        pairs_of_reals,
        plain_softmaxes,
        spread_outer_products,
        fewer_axes,
        say_axes,
        fill_by_choice,
        simplify_masks,
        finite_masks,
        drop_dead_code,
        prune,
    ):
        run(program)
    rename_outputs(program)
    program.graph.lint()
    program.graph_module.recompile()
    return program


def functionalize(program: ExportedProgram) -> ExportedProgram:
    """Replace in-place operations by functional ones.

    Where the changed tensor is nobody's view and has no views, its later readers read the result instead. Anything more
    tangled is left to PyTorch's own functionalisation, which takes longer and expands what it touches.
    """
    graph = program.graph
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if not _is_mutating(node):
            continue
        functional, target = _functional(node.target), node.args[0]
        if functional is None or not isinstance(target, Node) or not _stands_alone(target, order):
            return program.run_decompositions({})
        for user in list(target.users):
            if order[user] > order[node]:
                user.replace_input_with(target, node)
        node.target = functional
    return program


def _is_mutating(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _functional(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """`aten.add_.Tensor` -> `aten.add.Tensor`, when there is one with the same arguments."""
    namespace, _, name = target._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None) if name.endswith("_") else None
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _stands_alone(node: Node, order: dict[Node, int]) -> bool:
    """Whether the tensor is freshly computed and no other name of its memory exists."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return not _returns_view(node) and not any(_returns_view(user) for user in node.users)


def _returns_view(node: Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or _is_mutating(node):
        return False
    return any(value.alias_info is not None for value in node.target._schema.returns) or node.target in _MAYBE_VIEWS


def spread_outer_products(program: ExportedProgram) -> None:
    """`outer` becomes a product of a column and a row: Core ML has no matrix product of whole and real numbers."""
    for node in list(program.graph.nodes):
        if node.target is aten.outer.default:
            first, second = node.args
            column = insert(program.graph, node, aten.unsqueeze.default, (first, 1))
            replace(node, insert(program.graph, node, aten.mul.Tensor, (column, second)))


def say_axes(program: ExportedProgram) -> None:
    """Say what depends on the values at hand where it is left open.

    `squeeze()` in a format drops every axis that happens to be of size one, a batch of one too; the program knows which
    axes always are. Sums of truth values are integers in PyTorch; Core ML's are what they are given.
    """
    for node in list(program.graph.nodes):
        if node.target is aten.squeeze.default:
            axes = [axis for axis, size in enumerate(node.args[0].meta["val"].shape) if str(size) == "1"]
            source = node.args[0]
            for axis in reversed(axes[1:]):
                source = insert(program.graph, node, aten.squeeze.dim, (source, axis))
            if axes:
                node.target, node.args = aten.squeeze.dim, (source, axes[0])
            else:
                replace(node, source)
        elif node.target in (aten.sum.dim_IntList, aten.sum.default, aten.cumsum.default) and is_bool(node.args[0]):
            number = insert(program.graph, node, aten.to.dtype, (node.args[0], node.meta["val"].dtype))
            node.replace_input_with(node.args[0], number)


def fill_by_choice(program: ExportedProgram) -> None:
    """`x[mask] = number` as `where(mask, number, x)`: formats write at places, and a mask has an unknown number."""
    for node in list(program.graph.nodes):
        if node.target is not aten.index_put.default or (len(node.args) > 3 and node.args[3]):
            continue
        source, indices, number = node.args[:3]
        mask = indices[0] if len(indices) == 1 else None
        if not isinstance(mask, Node) or not is_bool(mask) or number.meta["val"].numel() != 1:
            continue
        for _ in range(source.meta["val"].dim() - mask.meta["val"].dim()):
            mask = insert(program.graph, node, aten.unsqueeze.default, (mask, -1))
        if number.meta["val"].dim() or number.meta["val"].dtype != source.meta["val"].dtype:
            number = insert(program.graph, node, aten.reshape.default, (number, []))
            number = insert(program.graph, node, aten.to.dtype, (number, source.meta["val"].dtype))
        node.target, node.args, node.kwargs = aten.where.self, (mask, number, source), {}


def prune(program: ExportedProgram) -> None:
    """Drop parameters, buffers and constants that nothing reads, from the graph and from the state."""
    signature = program.graph_signature
    droppable = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    by_name = {spec.arg.name: spec for spec in signature.input_specs if spec.kind in droppable}
    mutated = set(signature.buffers_to_mutate.values())
    for node in list(program.graph.nodes):
        spec = by_name.get(node.name) if node.op == "placeholder" else None
        if spec is not None and not node.users and spec.target not in mutated:
            program.graph.erase_node(node)
            signature.input_specs.remove(spec)
    used = {spec.target for spec in signature.input_specs}
    for store in (program._state_dict, program._constants):
        for name in [name for name in store if name not in used]:
            del store[name]
