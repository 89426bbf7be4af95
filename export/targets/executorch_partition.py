"""Which operations go into XNNPACK delegates: executorch's own partitioner, with corrections.

- A weight that an embedding shares with a linear layer (tied vocabularies) does not keep the layer out of the delegate
  that the embedding feeds. The partitioner counts a weight as part of the delegate, so such a delegate would come
  before and after the embedding; here shared weights join after the delegates are known, and are then duplicated.
- A delegate that only changes shapes is none: outside it, a reshape costs nothing at all.
- Numbers (tensors without axes) are computed outside: XNNPACK gives none.
- What XNNPACK would reshape to a shape of two unknown sizes stays outside (see `_unknown_reshape`).
- Groups come in the order of the graph, not of memory addresses, so that the same program gives the same file.
- Two delegates that each wait for the other (the partitioner looks for such circles one delegate at a time; writing
  into a cache makes them) are taken apart into stages.
"""

from __future__ import annotations

from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir.backend.canonical_partitioners.config_partitioner import format_target_name, is_constant_data
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.passes.infra.partitioner import Partition

from .executorch_half import ToFloatConfig, ToHalfConfig
from .executorch_integers import IntegerLinearConfig, LinearOfTableConfig

_OWN = (ToHalfConfig, ToFloatConfig, IntegerLinearConfig, LinearOfTableConfig)

_SQUEEZES = {"squeeze_copy.dim", "squeeze_copy.dims", "unsqueeze_copy.default"}
_SHAPE_ONLY = {"view_copy.default", "unsqueeze_copy.default", "_clone_dim_order.default", "clone.default"}


class Partitioner(XnnpackPartitioner):
    """XNNPACK's partitioner with the corrections above, taking our own operations too."""

    def __init__(self) -> None:
        super().__init__(configs=[*ALL_PARTITIONER_CONFIGS, *_OWN])

    def get_matched_nodes_from_configs(self, program: ExportedProgram) -> list[list[Node]]:
        """Groups of operations and constants that belong together, without constants that others read too."""
        order = {node: place for place, node in enumerate(program.graph.nodes)}
        groups = super().get_matched_nodes_from_configs(program)
        taken = {node for group in groups for node in group}
        kept = [
            sorted((node for node in group if not _stays_outside(program, node, taken)), key=order.__getitem__)
            for group in groups
            if not any(_unknown_reshape(node) or _is_number(node) for node in group)
        ]
        return sorted((group for group in kept if group), key=lambda group: order[group[0]])

    def generate_partitions(self, program: ExportedProgram) -> list[Partition]:
        """The delegates, in order of the graph."""
        order = {node: place for place, node in enumerate(program.graph.nodes)}
        found = []
        partitions = super().generate_partitions(program)
        if _wait_for_each_other(program, partitions):
            partitions = _stages(program, partitions)
        for partition in partitions:
            if any(_computes(node) for node in partition.nodes):
                nodes = sorted(partition.nodes, key=order.__getitem__)
                found.append(Partition(id=partition.id, nodes=dict.fromkeys(nodes)))
        found.sort(key=lambda partition: min(order[node] for node in partition.nodes if node.op == "call_function"))
        placed = {node for partition in found for node in partition.nodes}
        for place, partition in enumerate(found):
            partition.id = place
            for node in list(partition.nodes):
                for source in node.all_input_nodes:
                    if source not in placed and _is_constant(program, source):
                        partition.add_node(source)
                        placed.add(source)
        return found


def _wait_for_each_other(program: ExportedProgram, partitions: list[Partition]) -> bool:
    """Whether the program, each partition taken as one operation, goes in a circle."""
    place = {node: partition for partition in partitions for node in partition.nodes}
    waiting: dict[object, set[object]] = {}
    readers: dict[object, set[object]] = {}
    for node in program.graph.nodes:
        whole = place.get(node, node)
        before = {place.get(source, source) for source in node.all_input_nodes} - {whole}
        waiting.setdefault(whole, set()).update(before)
        for source in before:
            readers.setdefault(source, set()).add(whole)
    ready = [whole for whole, before in waiting.items() if not before]
    done = 0
    while ready:
        finished = ready.pop()
        done += 1
        for reader in readers.get(finished, ()):
            waiting[reader].discard(finished)
            if not waiting[reader]:
                ready.append(reader)
    return done < len(waiting)


def _stages(program: ExportedProgram, partitions: list[Partition]) -> list[Partition]:
    """The same operations parted by how many others, which stay outside, they have to wait for in turn."""
    inside = {node for partition in partitions for node in partition.nodes}
    stage: dict[Node, int] = {}
    for node in program.graph.nodes:
        after = [stage[source] + (source in inside and node not in inside) for source in node.all_input_nodes]
        stage[node] = max(after, default=0)
    parted: dict[int, list[Node]] = {}
    for node in program.graph.nodes:
        if node in inside:
            parted.setdefault(stage[node], []).append(node)
    return [Partition(id=number, nodes=dict.fromkeys(nodes)) for number, nodes in sorted(parted.items())]


def _stays_outside(program: ExportedProgram, node: Node, taken: set[Node]) -> bool:
    """Whether a weight or a state, for the time being or for good, is no part of a delegate."""
    if not is_constant_data(program, node):
        return False
    return not _is_constant(program, node) or any(user not in taken for user in node.users)


def _is_constant(program: ExportedProgram, node: Node) -> bool:
    """Whether a node is a weight: a buffer that the program writes into is none."""
    signature = program.graph_signature
    written = signature.inputs_to_buffers.get(node.name) in set(signature.buffers_to_mutate.values())
    return is_constant_data(program, node) and not written


def _unknown_reshape(node: Node) -> bool:
    """Whether an operation takes a reshape of XNNPACK's, whose shape may have one unknown size, and has two.

    A convolution along one axis is written as one along two, of which the second is put in and taken out again.
    executorch 1.4.1 asks for such sizes where it no longer knows which vary; the delegate then fails when it runs.
    """
    if node.op != "call_function" or not hasattr(node.target, "__name__"):
        return False
    name = format_target_name(node.target.__name__)
    if name not in _SQUEEZES and not (name == "convolution.default" and len(node.args[3]) == 1):
        return False
    shapes = [node.args[0].meta["val"].shape, node.meta["val"].shape]
    return any(sum(not isinstance(size, int) for size in shape) > 1 for shape in shapes)


def _is_number(node: Node) -> bool:
    value = node.meta.get("val")
    return node.op == "call_function" and hasattr(value, "dim") and value.dim() == 0


def _computes(node: Node) -> bool:
    return node.op == "call_function" and format_target_name(node.target.__name__) not in _SHAPE_ONLY
