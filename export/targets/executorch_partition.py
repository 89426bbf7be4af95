"""Which operations go into XNNPACK delegates: executorch's own partitioner, with three corrections.

- A weight that an embedding shares with a linear layer (tied vocabularies) does not keep the layer out of the delegate
  that the embedding feeds. The partitioner counts a weight as part of the delegate, so such a delegate would come
  before and after the embedding; here shared weights join after the delegates are known, and are then duplicated.
- A delegate that only changes shapes is none: outside it, a reshape costs nothing at all.
- Groups come in the order of the graph, not of memory addresses, so that the same program gives the same file.
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
            sorted((node for node in group if not _shared(program, node, taken)), key=order.__getitem__)
            for group in groups
        ]
        return sorted((group for group in kept if group), key=lambda group: order[group[0]])

    def generate_partitions(self, program: ExportedProgram) -> list[Partition]:
        """The delegates, in order of the graph."""
        order = {node: place for place, node in enumerate(program.graph.nodes)}
        found = []
        for partition in super().generate_partitions(program):
            if any(_computes(node) for node in partition.nodes):
                nodes = sorted(partition.nodes, key=order.__getitem__)
                found.append(Partition(id=partition.id, nodes=dict.fromkeys(nodes)))
        found.sort(key=lambda partition: min(order[node] for node in partition.nodes if node.op == "call_function"))
        placed = {node for partition in found for node in partition.nodes}
        for place, partition in enumerate(found):
            partition.id = place
            for node in list(partition.nodes):
                for source in node.all_input_nodes:
                    if source not in placed and is_constant_data(program, source):
                        partition.add_node(source)
                        placed.add(source)
        return found


def _shared(program: ExportedProgram, node: Node, taken: set[Node]) -> bool:
    return is_constant_data(program, node) and any(user not in taken for user in node.users)


def _computes(node: Node) -> bool:
    return node.op == "call_function" and format_target_name(node.target.__name__) not in _SHAPE_ONLY
