"""What flows into each layer on realistic inputs: the statistics that rounding and smoothing need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from ..runtime.errors import RequestError
from .execute import Execution
from .sites import Site, layer_input

# Rows of one text are too few for a product to be worth its threads: 384 columns took ten times as long a row.
_AT_ONCE = 512
# Bytes that Hessians may take together. BERT base has half of this, a llama of 1 B weights five times it.
ROOM = 2**30


@dataclass
class Statistics:
    """Of the rows x (columns,) that one activation had in all calibration inputs.

    lows, highs: of x by column. rows: how many. hessian: the sum of x x^T, (columns, columns); None: not gathered.
    """

    lows: torch.Tensor
    highs: torch.Tensor
    rows: int = 0
    hessian: torch.Tensor | None = None
    _waiting: list[torch.Tensor] = field(default_factory=list, repr=False)

    @classmethod
    def empty(cls, columns: int, hessian: bool = True) -> Statistics:
        whole = torch.zeros(columns, columns) if hessian else None
        return cls(torch.zeros(columns), torch.zeros(columns), hessian=whole)

    @property
    def largest(self) -> torch.Tensor:
        """Of |x|, by column."""
        return torch.maximum(self.highs, -self.lows)

    def add(self, values: torch.Tensor) -> None:
        """Count rows in. The hessian has them all after `finish`."""
        rows = values.detach().reshape(-1, values.shape[-1]).float()
        self.lows = torch.minimum(self.lows, rows.amin(0))
        self.highs = torch.maximum(self.highs, rows.amax(0))
        self.rows += len(rows)
        if self.hessian is not None:
            self._waiting.append(rows)
            if sum(map(len, self._waiting)) >= _AT_ONCE:
                self.finish()

    def finish(self) -> None:
        """Add the rows that wait to the hessian."""
        if self._waiting and self.hessian is not None:
            rows = torch.cat(self._waiting)
            self._waiting.clear()
            self.hessian.addmm_(rows.t(), rows)


def calibrate(
    program: ExportedProgram,
    sites: Sequence[Site],
    feeds: Iterable[Mapping[str, np.ndarray]],
    progress: Callable[[], None] | None = None,
    *,
    room: int = ROOM,
) -> dict[str, Statistics]:
    """Run a program on inputs and gather what its linear layers read, by the name of the activation's node.

    Args:
        feeds: inputs by name; best without padding, whose rows would count like any other.
        room: bytes for Hessians. Those of the first layers are gathered, as many as have room; see `hessians`.

    Raises:
        RequestError: there is no input, or one gives NaN or infinity.
    """
    columns = _activations(program, sites)
    near = _within(columns, next(iter(columns), ""), room)
    found = {name: Statistics.empty(width, name in near) for name, width in columns.items()}
    if not _observe(program, found, feeds, progress):
        raise RequestError("Calibration needs at least one input; the data has none.")
    return found


def hessians(
    program: ExportedProgram,
    sites: Sequence[Site],
    feeds: Iterable[Mapping[str, np.ndarray]],
    first: str,
    *,
    room: int = ROOM,
) -> dict[str, Statistics]:
    """The statistics of an activation and of those after it, as many as have room with their Hessians."""
    columns = _activations(program, sites)
    found = {name: Statistics.empty(columns[name]) for name in _within(columns, first, room)}
    _observe(program, found, feeds, None)
    return found


def _activations(program: ExportedProgram, sites: Sequence[Site]) -> dict[str, int]:
    """What linear layers read, in the order of the program, and how many columns it has."""
    nodes = {node.name: node for node in program.graph.nodes}
    found = {
        layer_input(nodes[use.node]).name: site.columns for site in sites for use in site.uses if use.kind == "linear"
    }
    return {name: found[name] for name in nodes if name in found}


def _within(columns: Mapping[str, int], first: str, room: int) -> list[str]:
    """Activations from the first on whose Hessians have room; one at least."""
    names = list(columns)
    found: list[str] = []
    for name in names[names.index(first) :] if first in columns else []:
        room -= 4 * columns[name] ** 2
        if found and room < 0:
            break
        found.append(name)
    return found


def _observe(
    program: ExportedProgram,
    found: Mapping[str, Statistics],
    feeds: Iterable[Mapping[str, np.ndarray]],
    progress: Callable[[], None] | None,
) -> int:
    """Count what some activations are into their statistics; gives the number of inputs."""

    def see(node: Node, value: Any) -> None:
        if node.name in found:
            if not bool(torch.isfinite(value).all()):
                raise RequestError("Calibration: an input makes the model give NaN or infinity. Look at the data.")
            found[node.name].add(value)

    last = _after(program, set(found))
    count = 0
    for feed in feeds:
        execution = Execution(program, feed)
        for node, value in execution.inputs().items():
            see(node, value)
        execution.advance(last, see)
        count += 1
        if progress is not None:
            progress()
    for statistics in found.values():
        statistics.finish()
    return count


def _after(program: ExportedProgram, names: set[str]) -> Node:
    """The node after the last of these."""
    nodes = list(program.graph_module.graph.nodes)
    place = max((place for place, node in enumerate(nodes) if node.name in names), default=len(nodes) - 2)
    return nodes[place + 1]
