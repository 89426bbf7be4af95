"""Masks: as few operations as say the same, additive, and finite in fp16."""

from __future__ import annotations

import math
import operator

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from .graph import drop_dead_code, insert, is_bool, replace, same_shape, same_size
from .identities import is_identity

aten = torch.ops.aten

# Added to the scores of masked keys. exp(-30000 - max) is 0 in fp32 and fp16 alike for any real score, twice it is
# still finite in fp16 (two masks can meet), and finfo(float32).min would round to -inf there.
MASKED = -30000.0


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
                if isinstance(other, Node) and isinstance(known, Node) and _always_true(known) and is_bool(other):
                    if _only_broadcasts(node, other):
                        node.replace_all_uses_with(other, propagate_meta=False)
                    break
    drop_dead_code(program)


def _only_broadcasts(node: Node, other: Node) -> bool:
    """Whether every reader of `node` gives the same with the unexpanded `other`: it expands, or it broadcasts."""
    if same_shape(node.meta["val"].shape, other.meta["val"].shape):
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
    if same_shape(current.meta["val"].shape, node.meta["val"].shape):
        replace(node, current)


def _full_arange(index: object, size: int | torch.SymInt) -> int | None:
    """The one axis (from the left) along which `index` counts 0..size-1, if that is what it is."""
    if not isinstance(index, Node):
        return None
    shape = index.meta["val"].shape
    axes = [axis for axis, length in enumerate(shape) if str(length) != "1"]
    if len(axes) > 1:
        return None
    node = index
    while node.target in (aten.unsqueeze.default, aten.reshape.default) or is_identity(node):
        node = node.args[0]
    if node.target is not aten.arange.default or not same_size(node.meta["val"].shape[0], size):
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
        elif is_bool(mask):
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
