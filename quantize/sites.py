"""Where a captured program uses its weights: what can be quantized, and how each weight lies in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

aten = torch.ops.aten

# Smaller tables and matrices stay: they are no part of a file's size, and some of the most sensitive.
_FEWEST = 4096


@dataclass(frozen=True)
class Use:
    """One operation that reads a weight.

    kind: `linear` (rows are outputs), `embedding` (rows are entries) or `convolution` (rows are output channels).
    transposed: the operation reads (inputs, outputs), as `addmm` does.
    """

    node: str
    kind: str
    transposed: bool = False


@dataclass(frozen=True)
class Site:
    """A weight that can be quantized, and every operation that reads it.

    name: of the parameter in the program. shape: as rows x columns, rows being outputs or entries.
    """

    name: str
    placeholder: str
    rows: int
    columns: int
    uses: tuple[Use, ...]

    @property
    def kind(self) -> str:
        """`embedding` when any use is one (a tied vocabulary), else that of the layer."""
        kinds = {use.kind for use in self.uses}
        return "embedding" if "embedding" in kinds else next(iter(kinds))

    @property
    def tied(self) -> bool:
        """Whether it is a table and a layer, as the vocabulary of many language models is."""
        return {"embedding", "linear"} <= {use.kind for use in self.uses}

    @property
    def transposed(self) -> bool:
        return self.uses[0].transposed

    @property
    def size(self) -> int:
        return self.rows * self.columns

    def as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """The parameter as (rows, columns)."""
        return weight.detach().t() if self.transposed else weight.detach().reshape(self.rows, self.columns)

    def as_parameter(self, matrix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Back from (rows, columns) to the parameter's own layout."""
        return (matrix.t() if self.transposed else matrix.reshape(like.shape)).contiguous()


# Operation -> (place of the weight among the arguments, kind, whether it lies transposed).
_READERS: dict[Callable, tuple[int, str, bool]] = {
    aten.linear.default: (1, "linear", False),
    aten.embedding.default: (0, "embedding", False),
    aten.addmm.default: (2, "linear", True),
    aten.mm.default: (1, "linear", True),
    aten.matmul.default: (1, "linear", True),
    aten.conv1d.default: (1, "convolution", False),
    aten.conv2d.default: (1, "convolution", False),
}


def find_sites(program: ExportedProgram) -> list[Site]:
    """The weights that can be quantized, in the order in which the program first reads them."""
    nodes = {node.name: node for node in program.graph.nodes}
    found: list[tuple[int, Site]] = []
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    for spec in program.graph_signature.input_specs:
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER) or spec.target not in program.state_dict:
            continue
        placeholder, weight = nodes[spec.arg.name], program.state_dict[spec.target]
        uses = [_use(user, placeholder) for user in placeholder.users]
        if not uses or None in uses or weight.numel() < _FEWEST or weight.dim() < 2:
            continue
        known = [use for use in uses if use is not None]
        if not weight.is_floating_point() or len({use.transposed for use in known}) > 1:
            continue
        if weight.dim() > 2 and {use.kind for use in known} != {"convolution"}:
            continue
        rows = weight.shape[1] if known[0].transposed else weight.shape[0]
        site = Site(spec.target, placeholder.name, rows, weight.numel() // rows, tuple(known))
        found.append((min(order[user] for user in placeholder.users), site))
    return [site for _, site in sorted(found, key=lambda entry: entry[0])]


def _use(node: Node, weight: Node) -> Use | None:
    place, kind, transposed = _READERS.get(node.target, (None, "", False))
    if place is None or len(node.args) <= place or node.args[place] is not weight:
        return None
    if sum(argument is weight for argument in node.all_input_nodes) != 1:
        return None
    return Use(node.name, kind, transposed)


def layer_input(node: Node) -> Node:
    """The activation that a linear layer or convolution reads."""
    source = node.args[1] if node.target is aten.addmm.default else node.args[0]
    assert isinstance(source, Node)
    return source


def bias_of(node: Node) -> Any:
    """What a linear layer adds to its products; None: nothing."""
    if node.target is aten.addmm.default:
        return node.args[0]
    return node.args[2] if node.target is aten.linear.default and len(node.args) > 2 else None
