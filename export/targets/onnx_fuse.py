"""What ONNX Runtime's CPU kernels run fastest, written so that they are what runs.

Measured with ONNX Runtime 1.31 on one thread, MiniLM's sizes, 128 tokens (`benchmarks/onnx_speed.py`):

- the standard's `Attention` is a third faster than the same in matrix products, transposes and a softmax, with the
  same bits as a result; `com.microsoft`'s `MultiHeadAttention` gains nothing with a mask;
- `SkipLayerNormalization`, which ONNX Runtime makes of an addition before a `LayerNormalization`, takes six times as
  long as the two (203 and 36 microseconds). A `Reshape` to the same shape between them, which costs nothing, keeps
  them apart in every app that opens the file, whatever its session options.
"""

from __future__ import annotations

import onnx_ir
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from ...quantize.program import insert
from .onnx_contrib import later

aten = torch.ops.aten
_MODULE_KEY = "palmtop.module"

_LIBRARY = torch.library.Library("palmtop_onnx", "FRAGMENT")
_LIBRARY.define("attention(Tensor query, Tensor key, Tensor value, Tensor? mask, int heads, float? scale) -> Tensor")


def _fake_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: object) -> torch.Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


_LIBRARY.impl("attention", _fake_attention, "Meta")


# --- attention ------------------------------------------------------------------------------------------------------


def fuse_attention(program: ExportedProgram) -> None:
    """Let attention read its projections and give its output as (batch, length, width), in place.

    That is where heads are split off by a reshape and a transpose and joined the same way, as in BERT and its kin. What
    differs stays as it is: rotary positions between, causal attention without a mask, grouped queries, heads of
    different number, masks that are not numbers for (batch or 1, heads or 1, queries or 1, keys).
    """
    masks: dict[tuple[Node | None, str], Node] = {}
    for node in list(program.graph.nodes):
        if node.target is aten.scaled_dot_product_attention.default:
            _fuse(node, masks)
    program.graph.eliminate_dead_code()
    program.graph.lint()
    program.graph_module.recompile()


def _fuse(node: Node, masks: dict[tuple[Node | None, str], Node]) -> None:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if given.get("is_causal") or given.get("enable_gqa") or given.get("dropout_p"):
        return
    joined = _joined(node)
    query, key, value = (_before_split(given[name]) for name in names[:3])
    if joined is None or query is None or key is None or value is None:
        return
    heads = node.meta["val"].shape[1]
    mask = given.get("attn_mask")
    if mask is not None:
        if not _fits(mask, given["query"], given["key"]):
            return
        mask = _for_every_query(mask, query, node, masks)
    arguments = (query, key, value, mask, heads, given.get("scale"))
    fused = insert(node, torch.ops.palmtop_onnx.attention.default, arguments, joined.meta["val"])
    joined.replace_all_uses_with(fused)
    joined.graph.erase_node(joined)


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
    if len(node.meta["val"].shape) != 4:
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


def _for_every_query(mask: Node, query: Node, before: Node, made: dict[tuple[Node | None, str], Node]) -> Node:
    """A mask with a row for each query: ONNX Runtime's kernel does not broadcast it. Made once for all layers."""
    length = query.meta["val"].shape[1]
    if _sizes(mask)[2] == str(length):
        return mask
    if (mask, str(length)) not in made:
        size = length
        if not isinstance(length, int):
            size = insert(before, aten.sym_size.int, (query, 1), length)
        value = mask.meta["val"].expand(-1, -1, length, -1)
        made[mask, str(length)] = insert(before, aten.expand.default, (mask, [-1, -1, size, -1]), value)
    return made[mask, str(length)]


def _sizes(node: Node) -> list[str]:
    """A node's shape, symbols as expressions: comparing them adds no guard."""
    return [str(size) for size in node.meta["val"].shape]


def _attention(query, key, value, mask, heads, scale):
    more = {} if scale is None else {"scale": scale}
    return later.Attention(query, key, value, mask, q_num_heads=heads, kv_num_heads=heads, **more)


TRANSLATIONS = {torch.ops.palmtop_onnx.attention.default: _attention}


# --- layer norms ----------------------------------------------------------------------------------------------------


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
        reshape = onnx_ir.node("Reshape", [total, shapes[width]], name=f"{node.name}_apart")
        output = reshape.outputs[0]
        output.name, output.shape, output.type = f"{total.name}_apart", total.shape, total.type
        if _MODULE_KEY in addition.metadata_props:
            reshape.metadata_props[_MODULE_KEY] = addition.metadata_props[_MODULE_KEY]
        graph.insert_before(node, reshape)
        node.replace_input_with(0, output)


def _constant(graph: onnx_ir.Graph, name: str, numbers: list[int]) -> onnx_ir.Value:
    tensor = onnx_ir.tensor(numbers, dtype=onnx_ir.DataType.INT64, name=name)
    value = onnx_ir.Value(
        name=name, shape=onnx_ir.Shape([len(numbers)]), type=onnx_ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value
