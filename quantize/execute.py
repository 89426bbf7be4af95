"""Runs a captured program on named inputs, whole or from one of its operations on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node

See = Callable[[Node, Any], None]


def run(
    program: ExportedProgram,
    feed: Mapping[str, np.ndarray],
    see: See | None = None,
    instead: Mapping[str, torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """A program's outputs for named inputs.

    Args:
        see: is shown what every operation gives.
        instead: other values for some of its weights, by name.
    """
    return Execution(program, feed, instead).finish(see)


class Execution:
    """One run of a program, an operation after the other. What nothing reads any more is let go of."""

    def __init__(
        self,
        program: ExportedProgram,
        feed: Mapping[str, np.ndarray],
        instead: Mapping[str, torch.Tensor] | None = None,
    ):
        self._interpreter = Interpreter(program.graph_module, garbage_collect_values=False)
        nodes = list(program.graph_module.graph.nodes)
        places = [node for node in nodes if node.op == "placeholder"]
        self._values = dict(zip(places, _arguments(program, feed, instead or {}), strict=True))
        self._rest = [node for node in nodes if node.op != "placeholder"]
        self._over: dict[Node, list[Node]] = {}
        read: set[Node] = set()
        for node in reversed(self._rest):
            self._over[node] = [source for source in node.all_input_nodes if source not in read]
            read.update(self._over[node])

    def advance(self, until: Node, see: See | None = None) -> None:
        """Compute what comes before a node. One that is computed already: nothing."""
        if until in self._rest:
            place = self._rest.index(until)
            before, self._rest = self._rest[:place], self._rest[place:]
            self._compute(self._values, before, see)

    def inputs(self) -> dict[Node, Any]:
        """The inputs and weights that are still to be read."""
        return {node: value for node, value in self._values.items() if node.op == "placeholder"}

    def finish(self, see: See | None = None, instead: Mapping[Node, torch.Tensor] | None = None) -> list[torch.Tensor]:
        """The program's outputs. The run itself stays where it is.

        Args:
            instead: other values for inputs or weights that nothing computed so far has read.
        """
        return list(self._compute({**self._values, **(instead or {})}, self._rest, see))

    def _compute(self, values: dict[Node, Any], nodes: list[Node], see: See | None) -> Any:
        self._interpreter.env = values
        value = None
        with torch.no_grad():
            for node in nodes:
                value = values[node] = self._interpreter.run_node(node)
                if see is not None and node.op != "output":
                    see(node, value)
                for source in self._over[node]:
                    del values[source]
        return value


def _arguments(
    program: ExportedProgram, feed: Mapping[str, np.ndarray], instead: Mapping[str, torch.Tensor]
) -> Iterator[Any]:
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            yield torch.from_numpy(np.array(feed[spec.arg.name]))
        elif spec.target in instead:
            yield instead[str(spec.target)]
        elif spec.target in program.state_dict:
            yield program.state_dict[spec.target]
        else:
            yield program.constants[str(spec.target)]
