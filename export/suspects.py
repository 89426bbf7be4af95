"""Which PyTorch modules are likely to suffer in fp16: the captured program, run with and without rounding at once.

A guess that costs one run and no conversion. It orders a search (`fallback.py`); what counts is the artifact's parity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.utils import _pytree as pytree

from .capture import Captured
from .modules import module_path

aten = torch.ops.aten

LARGEST = 65504.0
_ROUNDING = 2.0**-11


@dataclass
class Suspect:
    """A module: the largest magnitude of what it computes or reads in fp32, and how much it adds to errors."""

    module: str
    peak: float = 0.0
    growth: float = 0.0

    @property
    def overflows(self) -> bool:
        return self.peak > LARGEST

    def why(self) -> str:
        return overflow_reason(self.peak) if self.overflows else "loses too much precision in fp16"


def overflow_reason(peak: float) -> str:
    """Why a module overflows, for reports: its largest magnitude in fp32."""
    return f"values up to {peak:.2g}, and fp16 ends at {LARGEST:.0f}"


@dataclass(frozen=True)
class _Pair:
    """What a node gives in fp32, and with every value rounded to fp16."""

    exact: Any
    rounded: Any


def suspects(captured: Captured, feeds: Mapping[str, np.ndarray] | None) -> list[Suspect]:
    """Every module with floating-point arithmetic of its own: those that overflow first, then as errors grow in them.

    Without feeds, or where the program cannot be run on them, in order of execution.
    """
    found: dict[str, Suspect] = {}
    for node in captured.program.graph.nodes:
        if node.op == "call_function" and _is_float(node.meta.get("val")):
            found.setdefault(module_path(node), Suspect(module_path(node)))
    if feeds is not None:
        try:
            _Watched(captured, found).run_on(feeds)
        except (
            RuntimeError,
            IndexError,
            ValueError,
        ):  # rounding can make an index point nowhere; the search then goes without a guess
            return list(found.values())
    return sorted(found.values(), key=lambda s: (not s.overflows, -(s.peak if s.overflows else s.growth)))


class _Watched(torch.fx.Interpreter):
    """Runs a program in pairs and notes peaks and the growth of errors by module."""

    def __init__(self, captured: Captured, found: dict[str, Suspect]):
        super().__init__(captured.program.graph_module, garbage_collect_values=True)
        self.captured, self.found = captured, found
        self.errors: dict[Node, float] = {}
        self.peaks: dict[Node, float] = {}

    def run_on(self, feeds: Mapping[str, np.ndarray]) -> None:
        program = self.captured.program
        values: list[Any] = []
        for spec in program.graph_signature.input_specs:
            if spec.kind == InputKind.USER_INPUT:
                value = torch.from_numpy(np.array(feeds[str(getattr(spec.arg, "name", ""))]))
                values.append(value)
            else:
                name = str(spec.target)
                values.append(program.state_dict[name] if name in program.state_dict else program.constants[name])
        with torch.no_grad():
            self.run(*(_Pair(value, _round(value)) for value in values), enable_io_processing=False)

    def run_node(self, n: Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        target: Callable[..., Any] = n.target
        exact = target(*_side(args, "exact"), **_side(kwargs, "exact"))
        rounded = _round(target(*_side(args, "rounded"), **_side(kwargs, "rounded")))
        self._note(n, exact, rounded, _side(args, "exact"))
        return _Pair(exact, rounded)

    def _note(self, node: Node, exact: Any, rounded: Any, args: Any) -> None:
        suspect = self.found.get(module_path(node))
        if suspect is None or not _is_float(exact) or not exact.numel():
            return
        self.peaks[node] = _peak(exact)
        suspect.peak = max(suspect.peak, *(self.peaks.get(value, 0.0) for value in (node, *node.all_input_nodes)))
        if node.target is aten.scaled_dot_product_attention.default:  # its scores are a value of most formats
            suspect.peak = max(suspect.peak, _scores_peak(args[0], args[1]))
        scale = float(exact.square().mean().sqrt()) or 1.0
        error = float((rounded - exact).square().mean().sqrt()) / scale
        before = max([_ROUNDING, *(self.errors.get(source, 0.0) for source in node.all_input_nodes)])
        self.errors[node] = error if np.isfinite(error) else 1.0
        suspect.growth = max(suspect.growth, self.errors[node] / before)


def _scores_peak(query: torch.Tensor, key: torch.Tensor) -> float:
    groups = query.shape[-3] // key.shape[-3] if query.dim() > 3 and key.shape[-3] else 1
    return _peak(query @ key.repeat_interleave(groups, dim=-3).mT) if groups > 1 else _peak(query @ key.mT)


def _peak(value: torch.Tensor) -> float:
    finite = value[value.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _side(value: Any, which: str) -> Any:
    return pytree.tree_map(lambda leaf: getattr(leaf, which) if isinstance(leaf, _Pair) else leaf, value)


def _round(value: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.half().float() if _is_float(leaf) else leaf, value)


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32
