"""What flows into each layer on realistic inputs: the statistics that rounding and smoothing need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node

from ..runtime.errors import RequestError
from .sites import Site, layer_input

# Rows of one text are too few for a product to be worth its threads: 384 columns took ten times as long a row.
_AT_ONCE = 512


@dataclass
class Statistics:
    """Of the rows x (columns,) that one activation had in all calibration inputs.

    hessian: the sum of x x^T, (columns, columns). largest, lows, highs: of |x| and x by column. low, high: over all.
    rows: how many.
    """

    hessian: torch.Tensor
    largest: torch.Tensor
    lows: torch.Tensor
    highs: torch.Tensor
    low: float = 0.0
    high: float = 0.0
    rows: int = 0
    _waiting: list[torch.Tensor] = field(default_factory=list, repr=False)

    @classmethod
    def empty(cls, columns: int) -> Statistics:
        return cls(torch.zeros(columns, columns), *(torch.zeros(columns) for _ in range(3)))

    def add(self, values: torch.Tensor) -> None:
        """Count rows in. The hessian has them all after `finish`."""
        rows = values.detach().reshape(-1, values.shape[-1]).float()
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _AT_ONCE:
            self.finish()
        self.lows = torch.minimum(self.lows, rows.amin(0))
        self.highs = torch.maximum(self.highs, rows.amax(0))
        self.largest = torch.maximum(self.highs, -self.lows)
        self.low, self.high = float(self.lows.min()), float(self.highs.max())
        self.rows += len(rows)

    def finish(self) -> None:
        """Add the rows that wait to the hessian."""
        if self._waiting:
            rows = torch.cat(self._waiting)
            self._waiting.clear()
            self.hessian.addmm_(rows.t(), rows)


def calibrate(
    program: ExportedProgram,
    sites: Sequence[Site],
    feeds: Iterable[dict[str, np.ndarray]],
    progress: Callable[[], None] | None = None,
) -> dict[str, Statistics]:
    """Run a program on inputs and gather what its linear layers read, by the name of the activation's node.

    Args:
        feeds: inputs by name; best without padding, whose rows would count like any other.

    Raises:
        RequestError: there is no input, or one gives NaN or infinity.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    found: dict[str, Statistics] = {}
    for site in sites:
        for use in site.uses:
            if use.kind == "linear":
                found[layer_input(nodes[use.node]).name] = Statistics.empty(site.columns)

    def see(node: Node, value: Any) -> None:
        if node.name in found:
            if not bool(torch.isfinite(value).all()):
                raise RequestError("Calibration: an input makes the model give NaN or infinity. Look at the data.")
            found[node.name].add(value)

    count = 0
    for feed in feeds:
        run(program, feed, see)
        count += 1
        if progress is not None:
            progress()
    if not count:
        raise RequestError("Calibration needs at least one input; the data has none.")
    for statistics in found.values():
        statistics.finish()
    return found


def run(
    program: ExportedProgram,
    feed: dict[str, np.ndarray],
    see: Callable[[Node, Any], None] | None = None,
    instead: Mapping[str, torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """A program's outputs for named inputs.

    Args:
        see: is shown what every operation gives.
        instead: other values for some of its weights.
    """

    class Watcher(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if see is not None and n.op != "output":
                see(n, value)
            return value

    arguments = []
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            arguments.append(torch.from_numpy(np.array(feed[spec.arg.name])))
        elif instead is not None and spec.target in instead:
            arguments.append(instead[str(spec.target)])
        elif spec.target in program.state_dict:
            arguments.append(program.state_dict[spec.target])
        else:
            arguments.append(program.constants[str(spec.target)])
    with torch.no_grad():
        return list(Watcher(program.graph_module).run(*arguments))
