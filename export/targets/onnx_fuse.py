"""What ONNX Runtime's CPU kernels run fastest, written so that they are what runs.

Measured with ONNX Runtime 1.31 on one thread, MiniLM's sizes, 128 tokens (`benchmarks/onnx_speed.py`):

- the standard's `Attention` is a third faster than the same in matrix products, transposes and a softmax, with the
  same bits as a result; `com.microsoft`'s `MultiHeadAttention` gains nothing with a mask;
- `SkipLayerNormalization`, which ONNX Runtime makes of an addition before a `LayerNormalization`, takes six times as
  long as the two (203 and 36 microseconds). A `Reshape` to the same shape between them, which costs nothing, keeps
  them apart in every app that opens the file, whatever its session options.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from ...quantize.program import insert
from ..grouped import before_repeat
from .onnx_contrib import later

aten = torch.ops.aten
_MODULE_KEY = "palmtop.module"

_LIBRARY = torch.library.Library("palmtop_onnx", "FRAGMENT")
_LIBRARY.define("attention(Tensor query, Tensor key, Tensor value, Tensor? mask, int heads, float? scale) -> Tensor")


def _fake_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: object) -> torch.Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


_LIBRARY.impl("attention", _fake_attention, "Meta")
_LIBRARY.define("grouped_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float? scale) -> Tensor")
_LIBRARY.impl("grouped_attention", _fake_attention, "Meta")


# --- attention ------------------------------------------------------------------------------------------------------


def fuse_attention(program: ExportedProgram) -> None:
    """Let attention read its projections and give its output as (batch, length, width), in place.

    That is where heads are split off by a reshape and a transpose and joined the same way, as in BERT and its kin. What
    differs stays as it is: rotary positions between, causal attention without a mask, heads of different number, masks
    that are not numbers for (batch or 1, heads or 1, queries or 1, keys). Grouped queries, with rotary positions or
    without, are attention on the keys and values that there are.
    """
    masks: dict[tuple, Node] = {}
    for node in list(program.graph.nodes):
        given = _given(node)
        if given is not None and not _fuse(node, given, masks):
            _group(node, given, masks)
    program.graph.eliminate_dead_code()
    program.graph.lint()
    program.graph_module.recompile()


@dataclass(frozen=True)
class _Attention:
    """What an attention reads: heads of (batch, heads, length, depth), and what is added to the scores."""

    query: Node
    key: Node
    value: Node
    added: tuple[Node, ...]
    scale: float | None


def _given(node: Node) -> _Attention | None:
    """Attention as one operation, or in products around a softmax, as MPNet has it for its relative positions."""
    if node.target is aten.scaled_dot_product_attention.default:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if given.get("is_causal") or given.get("enable_gqa") or given.get("dropout_p"):
            return None
        mask = given.get("attn_mask")
        added = () if mask is None else (mask,)
        return _Attention(given["query"], given["key"], given["value"], added, given.get("scale"))
    if node.target is not aten.matmul.default or node.args[0].target is not aten.softmax.int:
        return None
    softmax, value = node.args
    scores, axis = softmax.args[:2]
    in_another_dtype = len(softmax.args) > 2 or softmax.kwargs
    if in_another_dtype or len(softmax.users) != 1 or axis not in (-1, scores.meta["val"].dim() - 1):
        return None
    more: list[Node] = []
    while scores.target is aten.add.Tensor and len(scores.users) == 1 and not scores.kwargs:
        left, right = scores.args
        if not isinstance(left, Node) or not isinstance(right, Node):
            return None
        scores, other = (left, right) if _product(left) is not None or left.target is aten.add.Tensor else (right, left)
        more.insert(0, other)
    found = _product(scores)
    return None if found is None else _Attention(found[0], found[1], value, tuple(more), found[2])


def _product(node: Node) -> tuple[Node, Node, float] | None:
    """Queries, keys and scale of scores, when nothing else reads them."""
    scale = 1.0
    while node.target in (aten.div.Tensor, aten.mul.Tensor) and len(node.users) == 1:
        source, number = node.args
        if not isinstance(source, Node) or not isinstance(number, (int, float)):
            return None
        scale = scale / number if node.target is aten.div.Tensor else scale * number
        node = source
    if node.target is not aten.matmul.default or len(node.users) != 1:
        return None
    query, turned = node.args
    if turned.target is not aten.transpose.int or {axis % 4 for axis in turned.args[1:3]} != {2, 3}:
        return None
    return query, turned.args[0], scale


def _fuse(node: Node, given: _Attention, masks: dict[tuple, Node]) -> bool:
    joined = _joined(node)
    query, key, value = _before_split(given.query), _before_split(given.key), _before_split(given.value)
    if joined is None or query is None or key is None or value is None:
        return False
    mask = None
    if given.added:
        if not all(_fits(each, given.query, given.key) for each in given.added):
            return False
        mask = _for_every_query(_sum(given.added, node, masks), query, node, masks)
    heads = node.meta["val"].shape[1]
    arguments = (query, key, value, mask, heads, given.scale)
    fused = insert(node, torch.ops.palmtop_onnx.attention.default, arguments, joined.meta["val"])
    joined.replace_all_uses_with(fused)
    joined.graph.erase_node(joined)
    return True


def _group(node: Node, given: _Attention, masks: dict[tuple, Node]) -> None:
    """Attention of grouped queries on keys and values as they are, not repeated for each query head."""
    key, value = before_repeat(given.key), before_repeat(given.value)
    if key is None or value is None or key.meta["val"].shape[1] != value.meta["val"].shape[1]:
        return
    if node.meta["val"].dtype != torch.float32 or not all(_fits(each, given.query, given.key) for each in given.added):
        return
    mask = _for_every_query(_sum(given.added, node, masks), given.query, node, masks, 2) if given.added else None
    arguments = (given.query, key, value, mask, given.scale)
    grouped = insert(node, torch.ops.palmtop_onnx.grouped_attention.default, arguments, node.meta["val"])
    node.replace_all_uses_with(grouped)
    node.graph.erase_node(node)


def _sum(added: tuple[Node, ...], before: Node, made: dict[tuple, Node]) -> Node:
    """What layer after layer adds to its scores, added up once."""
    total = added[0]
    for other in added[1:]:
        if (total, other) not in made:
            value = total.meta["val"] + other.meta["val"]
            made[total, other] = insert(before, aten.add.Tensor, (total, other), value)
        total = made[total, other]
    return total


def _before_split(node: Node) -> Node | None:
    """The (batch, length, width) of which `node` is the heads: (batch, heads, length, depth)."""
    if not _swaps_heads(node):
        return None
    split = node.args[0]
    if split.target is not aten.reshape.default and split.target is not aten.unflatten.int:
        return None
    source = split.args[0]
    whole, parts = _sizes(source), _sizes(split)
    if len(whole) != 3 or len(parts) != 4 or whole[:2] != parts[:2] or source.meta["val"].dtype != torch.float32:
        return None
    return source if all(isinstance(size, int) for size in split.meta["val"].shape[2:]) else None


def _joined(node: Node) -> Node | None:
    """The (batch, length, width) into which attention's heads are joined, when nothing else reads them."""
    swapped = _only_reader(node)
    joined = _only_reader(swapped) if swapped is not None and _swaps_heads(swapped) else None
    if joined is None or joined.target not in (aten.reshape.default, aten.flatten.using_ints):
        return None
    batch, heads, length, depth = node.meta["val"].shape
    whole = joined.meta["val"].shape
    fits = len(whole) == 3 and isinstance(heads * depth, int) and whole[2] == heads * depth
    return joined if fits and _sizes(joined)[:2] == [str(batch), str(length)] else None


def _swaps_heads(node: Node) -> bool:
    if node.op != "call_function" or len(node.meta["val"].shape) != 4:
        return False
    if node.target is aten.transpose.int:
        return {axis % 4 for axis in node.args[1:3]} == {1, 2}
    return node.target is aten.permute.default and list(node.args[1]) == [0, 2, 1, 3]


def _only_reader(node: Node) -> Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].op == "call_function" else None


def _fits(mask: Node, query: Node, key: Node) -> bool:
    value = mask.meta["val"]
    batch, heads, queries, _ = _sizes(query)
    keys = _sizes(key)[2]
    if value.dtype != torch.float32 or value.dim() != 4:
        return False
    given = _sizes(mask)
    allowed = ({"1", batch}, {"1", heads}, {"1", queries}, {keys})
    return all(size in sizes for size, sizes in zip(given, allowed, strict=True))


def _for_every_query(mask: Node, query: Node, before: Node, made: dict[tuple, Node], axis: int = 1) -> Node:
    """A mask with a row for each query (along `axis`): ONNX Runtime's kernel does not broadcast it. Made once for all
    layers.
    """
    length = query.meta["val"].shape[axis]
    if _sizes(mask)[2] == str(length):
        return mask
    if (mask, str(length)) not in made:
        size = length
        if not isinstance(length, int):
            size = insert(before, aten.sym_size.int, (query, axis), length)
        value = mask.meta["val"].expand(-1, -1, length, -1)
        made[mask, str(length)] = insert(before, aten.expand.default, (mask, [-1, -1, size, -1]), value)
    return made[mask, str(length)]


def _sizes(node: Node) -> list[str]:
    """A node's shape, symbols as expressions: comparing them adds no guard."""
    return [str(size) for size in node.meta["val"].shape]


def _attention(query, key, value, mask, heads, scale):
    more = {} if scale is None else {"scale": scale}
    return later.Attention(query, key, value, mask, q_num_heads=heads, kv_num_heads=heads, **more)


def _grouped_attention(query, key, value, mask, scale):
    return later.Attention(query, key, value, mask, **({} if scale is None else {"scale": scale}))


TRANSLATIONS = {
    torch.ops.palmtop_onnx.attention.default: _attention,
    torch.ops.palmtop_onnx.grouped_attention.default: _grouped_attention,
}


# --- kept apart ----------------------------------------------------------------------------------------------------


def part_norms_from_sums(model: onnx_ir.Model) -> None:
    """Put a reshape that changes nothing between each layer norm and the addition that it alone reads."""
    graph = model.graph
    shapes: dict[int, onnx_ir.Value] = {}
    for node in list(graph):
        if (node.domain, node.op_type) != ("", "LayerNormalization") or node.inputs[0] is None:
            continue
        total = node.inputs[0]
        addition = total.producer()
        if addition is None or addition.op_type != "Add" or total.is_graph_output() or len(total.uses()) != 1:
            continue
        width = total.shape[-1] if total.shape is not None and len(total.shape) == 3 else None
        if not isinstance(width, int):
            continue
        if width not in shapes:
            shapes[width] = _constant(graph, f"as_it_is_{width}", [0, 0, width])
        _keep_apart(graph, node, total, shapes[width])


def part_pools_from_padding(model: onnx_ir.Model) -> None:
    """The same between padding and the greatest of a window. ONNX Runtime makes one operation of the two, whose border
    is minus infinity: zeros, which are greater than what is negative, would be gone.
    """
    graph = model.graph
    shapes: dict[int, onnx_ir.Value] = {}
    for node in list(graph):
        padded = node.inputs[0] if (node.domain, node.op_type) == ("", "MaxPool") else None
        before = padded.producer() if padded is not None else None
        if padded is None or before is None or before.op_type != "Pad" or padded.shape is None:
            continue
        rank = len(padded.shape)
        if rank not in shapes:
            shapes[rank] = _constant(graph, f"as_it_is_of_{rank}", [0] * rank)
        _keep_apart(graph, node, padded, shapes[rank])


def _keep_apart(graph: onnx_ir.Graph, node: onnx_ir.Node, value: onnx_ir.Value, shape: onnx_ir.Value) -> None:
    """Let a node read a value by way of a reshape that changes nothing."""
    reshape = onnx_ir.node("Reshape", [value, shape], name=f"{node.name}_apart")
    output = reshape.outputs[0]
    output.name, output.shape, output.type = f"{value.name}_apart", value.shape, value.type
    producer = value.producer()
    if producer is not None and _MODULE_KEY in producer.metadata_props:
        reshape.metadata_props[_MODULE_KEY] = producer.metadata_props[_MODULE_KEY]
    graph.insert_before(node, reshape)
    node.replace_input_with(0, output)


def _constant(graph: onnx_ir.Graph, name: str, numbers: list[int]) -> onnx_ir.Value:
    tensor = onnx_ir.tensor(numbers, dtype=onnx_ir.DataType.INT64, name=name)
    value = onnx_ir.Value(
        name=name, shape=onnx_ir.Shape([len(numbers)]), type=onnx_ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value
