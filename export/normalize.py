"""One graph for every target: the rewrites that all of them need, done once, on the captured program.

Each pass keeps the values that the model computes (to the noise of fp32) and makes the graph smaller or safer:

- `functionalize`: `x.add_(y)` becomes `x = x + y`, which is all that targets know;
- `drop_identities`: dropout in eval mode, assertions, aliases and copies, casts to the dtype a tensor already has;
- `say_axes`: squeezing says which axes (those of size one for every input), and truth values are summed as integers;
- `fill_by_choice`: one number written where a mask holds is a choice between the two (`x[mask] = 0`);
- `simplify_masks`: attention masks as Transformers builds them (by indexing with `arange`) become a reshape;
- `finite_masks`: boolean attention masks become additive ones, shared by all layers, and "minus infinity" becomes a
  number that fp16 can hold, so that a row with every key masked gives no NaN;
- `prune`: parameters and buffers that nothing reads (a pooler whose output was not asked for).
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node

from .axes import fewer_axes

aten = torch.ops.aten

# Added to the scores of masked keys. exp(-30000 - max) is 0 in fp32 and fp16 alike for any real score, twice it is
# still finite in fp16 (two masks can meet), and finfo(float32).min would round to -inf there.
MASKED = -30000.0

_ALWAYS_IDENTITY = {
    aten.alias.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh_copy.default,
    aten.contiguous.default,
    aten.clone.default,
}
_ASSERTIONS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}
# Their schemas promise nothing, but they may return a view of their argument.
_MAYBE_VIEWS = {aten.reshape.default, aten.contiguous.default, aten.to.dtype, aten.to.device, aten.dropout.default}
_CASTS = {
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten._to_copy.default,
    aten.type_as.default,
}


def normalize(program: ExportedProgram) -> ExportedProgram:
    """Run all passes on a program, which may be changed in place, and return the normalised one."""
    program = functionalize(program)
    for run in (
        drop_identities,
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


def rename_outputs(program: ExportedProgram) -> None:
    """The signature knows outputs by node name; a pass may have put another node in an output's place."""
    specs = program.graph_signature.output_specs
    for spec, node in zip(specs, program.graph.output_node().args[0], strict=True):
        if isinstance(node, Node) and spec.arg.name != node.name:
            spec.arg = dataclasses.replace(spec.arg, name=node.name)


# --- building nodes -------------------------------------------------------------------------------------------------


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


def _replace(node: Node, other: Node) -> None:
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


# --- in-place operations --------------------------------------------------------------------------------------------


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


# --- identities -----------------------------------------------------------------------------------------------------


def drop_identities(program: ExportedProgram) -> None:
    """Remove what computes nothing. `view` becomes `reshape`, which does not mind that a copy before it is gone."""
    graph = program.graph
    mutated = set(program.graph_signature.buffers_to_mutate) | set(program.graph_signature.user_inputs_to_mutate)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
        elif node.target is aten.broadcast_tensors.default:
            for user in list(node.users):  # losses that nobody reads leave these behind
                given = node.args[0][user.args[1]]
                if _same_shape(given.meta["val"].shape, user.meta["val"].shape):
                    _replace(user, given)
        elif node.target is aten.view.default or node.target is aten._unsafe_view.default:
            node.target = aten.reshape.default
        elif _is_identity(node) and node.name not in mutated:
            _replace(node, node.args[0])
        elif node.target in _CASTS and node.target is not aten.to.dtype:
            node.target, node.args, node.kwargs = aten.to.dtype, (node.args[0], node.meta["val"].dtype), {}


def spread_outer_products(program: ExportedProgram) -> None:
    """`outer` becomes a product of a column and a row: Core ML has no matrix product of whole and real numbers."""
    for node in list(program.graph.nodes):
        if node.target is aten.outer.default:
            first, second = node.args
            column = insert(program.graph, node, aten.unsqueeze.default, (first, 1))
            _replace(node, insert(program.graph, node, aten.mul.Tensor, (column, second)))


def _is_identity(node: Node) -> bool:
    if node.target in _ALWAYS_IDENTITY:
        return True
    if node.target in (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default):
        return len(node.args) < 3 or not node.args[2]
    if node.target in _CASTS:
        return node.args[0].meta["val"].dtype == node.meta["val"].dtype
    if node.target in (aten.expand.default, aten.reshape.default):
        return _same_shape(node.args[0].meta["val"].shape, node.meta["val"].shape)
    if node.target is aten.add.Tensor and not isinstance(node.args[1], Node):
        return node.args[1] == 0 and isinstance(node.args[0], Node) and _same_dtype(node)
    return False


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
                _replace(node, source)
        elif node.target in (aten.sum.dim_IntList, aten.sum.default, aten.cumsum.default) and _is_bool(node.args[0]):
            number = insert(program.graph, node, aten.to.dtype, (node.args[0], node.meta["val"].dtype))
            node.replace_input_with(node.args[0], number)


def fill_by_choice(program: ExportedProgram) -> None:
    """`x[mask] = number` as `where(mask, number, x)`: formats write at places, and a mask has an unknown number."""
    for node in list(program.graph.nodes):
        if node.target is not aten.index_put.default or (len(node.args) > 3 and node.args[3]):
            continue
        source, indices, number = node.args[:3]
        mask = indices[0] if len(indices) == 1 else None
        if not isinstance(mask, Node) or not _is_bool(mask) or number.meta["val"].numel() != 1:
            continue
        for _ in range(source.meta["val"].dim() - mask.meta["val"].dim()):
            mask = insert(program.graph, node, aten.unsqueeze.default, (mask, -1))
        if number.meta["val"].dim() or number.meta["val"].dtype != source.meta["val"].dtype:
            number = insert(program.graph, node, aten.reshape.default, (number, []))
            number = insert(program.graph, node, aten.to.dtype, (number, source.meta["val"].dtype))
        node.target, node.args, node.kwargs = aten.where.self, (mask, number, source), {}


def _same_dtype(node: Node) -> bool:
    return node.args[0].meta["val"].dtype == node.meta["val"].dtype


def _same_shape(first: torch.Size, second: torch.Size) -> bool:
    """Equal, symbols compared as expressions: no guard is added by asking."""
    return len(first) == len(second) and all(map(_same_size, first, second))


def _same_size(first: int | torch.SymInt, second: int | torch.SymInt) -> bool:
    return str(first) == str(second)


# --- masks ----------------------------------------------------------------------------------------------------------


def simplify_masks(program: ExportedProgram) -> None:
    """Undo what `transformers.masking_utils` does for vmap-free tracing.

    A padding mask (B, S) is read there as `mask[arange(B)[:, None, None, None], arange(S)[None, None, None, :]]`, which
    is `mask[:, None, None, :]`, then and-ed with `arange(S) >= 0`, which is always true.
    """
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is aten.index.Tensor:
            _index_to_reshape(node)
    for node in list(graph.nodes):
        if node.target in (aten.__and__.Tensor, aten.logical_and.default, aten.bitwise_and.Tensor, operator.and_):
            left, right = node.args[:2]
            for known, other in ((left, right), (right, left)):
                if isinstance(other, Node) and isinstance(known, Node) and _always_true(known) and _is_bool(other):
                    if _only_broadcasts(node, other):
                        node.replace_all_uses_with(other, propagate_meta=False)
                    break
    drop_dead_code(program)


def _is_bool(node: Node) -> bool:
    return node.meta["val"].dtype == torch.bool


def _only_broadcasts(node: Node, other: Node) -> bool:
    """Whether every reader of `node` gives the same with the unexpanded `other`: it expands, or it broadcasts."""
    if _same_shape(node.meta["val"].shape, other.meta["val"].shape):
        return True
    rank = node.meta["val"].dim()
    if other.meta["val"].dim() != rank:
        return False
    readers = (aten.expand.default, aten.scaled_dot_product_attention.default, aten.__and__.Tensor)
    return all(user.target in readers for user in node.users)


def _always_true(node: Node) -> bool:
    if node.target in (aten.new_ones.default, aten.ones.default, aten.ones_like.default):
        return True
    if node.target is aten.ge.Scalar:
        return node.args[1] == 0 and _never_negative(node.args[0])
    if node.target in (aten.unsqueeze.default, aten.expand.default, aten.reshape.default):
        return _always_true(node.args[0])
    if node.target is aten.__and__.Tensor:
        return all(isinstance(argument, Node) and _always_true(argument) for argument in node.args)
    return False


def _never_negative(node: object) -> bool:
    if not isinstance(node, Node):
        return isinstance(node, (int, float)) and node >= 0
    if node.target in (aten.arange.default, aten.arange.start):
        return node.target is aten.arange.default or _never_negative(node.args[0])
    if node.target is aten.add.Tensor:
        return _never_negative(node.args[0]) and _never_negative(node.args[1])
    if node.target in (aten.unsqueeze.default, aten.expand.default, aten.reshape.default):
        return _never_negative(node.args[0])
    return False


def _index_to_reshape(node: Node) -> None:
    """`x[arange(n0)[..], arange(n1)[..]]`, each index on an axis of its own, is `x` with axes of size one put in."""
    source, indices = node.args
    shape = source.meta["val"].shape
    if not isinstance(indices, (list, tuple)) or len(indices) != len(shape) or any(i is None for i in indices):
        return
    places = [_full_arange(index, size) for index, size in zip(indices, shape, strict=True)]
    found = [place for place in places if place is not None]
    if len(found) != len(places) or found != sorted(set(found)):
        return
    rank = node.meta["val"].dim()
    current = source
    for axis in range(rank):
        if axis not in places:
            current = insert(node.graph, node, aten.unsqueeze.default, (current, axis))
    if _same_shape(current.meta["val"].shape, node.meta["val"].shape):
        _replace(node, current)


def _full_arange(index: object, size: int | torch.SymInt) -> int | None:
    """The one axis (from the left) along which `index` counts 0..size-1, if that is what it is."""
    if not isinstance(index, Node):
        return None
    shape = index.meta["val"].shape
    axes = [axis for axis, length in enumerate(shape) if str(length) != "1"]
    if len(axes) > 1:
        return None
    node = index
    while node.target in (aten.unsqueeze.default, aten.reshape.default) or _is_identity(node):
        node = node.args[0]
    if node.target is not aten.arange.default or not _same_size(node.meta["val"].shape[0], size):
        return None
    if axes:
        return axes[0]
    return _unsqueezed_axis(index)


def _unsqueezed_axis(index: Node) -> int | None:
    """Which axis of an all-ones shape was the arange's own: unsqueezes before it push it right."""
    axis, chain, node = 0, [], index
    while node.target is aten.unsqueeze.default:
        chain.append(node.args[1])
        node = node.args[0]
    for rank, place in enumerate(reversed(chain), start=1):
        place = place if place >= 0 else place + rank + 1
        axis += place <= axis
    return axis


def finite_masks(program: ExportedProgram) -> None:
    """Make masks additive and finite, and leave attention's `scale` out where it is the default."""
    _clamp_constants(program)
    graph = program.graph
    additive: dict[Node, Node] = {}
    for node in list(graph.nodes):
        if node.op == "call_function":
            _clamp_scalars(node)
        if node.target is aten.scaled_dot_product_attention.default:
            _normalize_attention(node, additive)


def _normalize_attention(node: Node, additive: dict[Node, Node]) -> None:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    query = given["query"].meta["val"]
    scale = given.pop("scale", None)
    default = 1 / math.sqrt(query.shape[-1]) if isinstance(query.shape[-1], int) else None
    if scale is not None and not (default is not None and math.isclose(scale, default, rel_tol=1e-6)):
        given["scale"] = scale
    mask = given.get("attn_mask")
    if isinstance(mask, Node):
        if mask.target is aten.expand.default and len(mask.args[0].meta["val"].shape) == len(mask.meta["val"].shape):
            mask = mask.args[0]  # attention broadcasts by itself
        if _is_the_same_for_all_keys(mask, given["key"]):
            given.pop("attn_mask")
        elif _is_bool(mask):
            if mask not in additive:
                after = mask.next
                number = insert(node.graph, after, aten.to.dtype, (mask, query.dtype))
                shifted = insert(node.graph, after, aten.sub.Tensor, (number, 1.0))
                additive[mask] = insert(node.graph, after, aten.mul.Tensor, (shifted, -MASKED))
            given["attn_mask"] = additive[mask]
        else:
            given["attn_mask"] = mask
    node.args = (given.pop("query"), given.pop("key"), given.pop("value"))
    node.kwargs = {
        name: value
        for name, value in given.items()
        if not (name == "dropout_p" and value == 0) and value is not None and value is not False
    }


def _is_the_same_for_all_keys(mask: Node, key: Node) -> bool:
    """Whether a mask adds one number to all scores of a query, which softmax does not see (ViT's mask of ones)."""
    along_keys, keys = mask.meta["val"].shape[-1], key.meta["val"].shape[-2]
    return isinstance(along_keys, int) and along_keys == 1 and not (isinstance(keys, int) and keys == 1)


# Where a number this large stands for minus infinity: fills always, factors only when no data could need it.
_FILLS = {
    aten.full.default,
    aten.full_like.default,
    aten.new_full.default,
    aten.masked_fill.Scalar,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten.where.Scalar,
    aten.scalar_tensor.default,
    aten.fill.Scalar,
    aten.constant_pad_nd.default,
}
_FACTORS = {aten.mul.Tensor, aten.mul.Scalar, aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.rsub.Scalar}


def _clamp_scalars(node: Node) -> None:
    least = 65504.0 if node.target in _FILLS else 1e9 if node.target in _FACTORS else None
    value = node.meta.get("val")
    if least is None or not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
        return
    node.args = tuple(_finite(argument, least) for argument in node.args)
    node.kwargs = {key: _finite(argument, least) for key, argument in node.kwargs.items()}


def _finite(value: object, least: float) -> object:
    if isinstance(value, float) and abs(value) > least:
        return math.copysign(MASKED, value)
    return value


def _clamp_constants(program: ExportedProgram) -> None:
    """Buffers and lifted constants, never parameters."""
    parameters = set(program.graph_signature.parameters)
    for store in (program.constants, program.state_dict):
        for name, value in list(store.items()):
            if name in parameters or not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
                continue
            huge = value.abs() >= 1e9
            if huge.any():
                store[name] = torch.where(huge, torch.copysign(torch.full_like(value, -MASKED), value), value)


# --- dead code ------------------------------------------------------------------------------------------------------


def drop_dead_code(program: ExportedProgram) -> None:
    """Erase calls that nothing reads (placeholders stay)."""
    program.graph.eliminate_dead_code()


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
