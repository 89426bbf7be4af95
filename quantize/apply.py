"""A plan put into a captured program: weights replaced by what their integers stand for, inputs smoothed.

The program stays an ordinary fp32 program that any target can lower and any test can run; the integers lie beside it,
by parameter name, for targets that store them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node

from .calibrate import Statistics
from .scheme import Scheme
from .sites import Site, layer_input
from .weights import QuantizedWeight, quantize

aten = torch.ops.aten

_SMOOTH = "palmtop_smooth"


def apply(
    program: ExportedProgram,
    sites: Sequence[Site],
    plan: Mapping[str, Scheme],
    *,
    statistics: Mapping[str, Statistics],
    smoothing: float | None = None,
    gptq: bool = True,
    progress: Callable[[], None] | None = None,
) -> dict[str, QuantizedWeight]:
    """Quantize a program in place (its `state_dict` must be its own) and give the integers, by parameter name.

    Args:
        plan: parameter name in the program -> scheme.
        statistics: by activation, from `calibrate`; layers whose input has none are rounded to nearest.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    factors = _smooth(program, sites, plan, statistics, smoothing) if smoothing is not None else {}
    done = {}
    for site in sites:
        if site.name not in plan:
            continue
        weight = program.state_dict[site.name]
        done[site.name] = quantize(
            site.as_matrix(weight),
            plan[site.name],
            tuple(weight.shape),
            site.transposed,
            _hessian(site, nodes, statistics, factors) if gptq else None,
        )
        _store(program, site.name, done[site.name].dequantize().to(weight.dtype))
        if progress is not None:
            progress()
    program.graph.lint()
    program.graph_module.recompile()
    return done


def _hessian(
    site: Site, nodes: Mapping[str, Node], statistics: Mapping[str, Statistics], factors: Mapping[str, torch.Tensor]
) -> torch.Tensor | None:
    """Of a layer's inputs, all its uses together; None for tables and where nothing was seen."""
    total = None
    for use in site.uses:
        if use.kind != "linear":
            return None
        source = _origin(layer_input(nodes[use.node])).name
        if source not in statistics or not statistics[source].rows:
            return None
        hessian = statistics[source].hessian.double()
        if source in factors:
            hessian = hessian / torch.outer(factors[source], factors[source]).double()
        total = hessian if total is None else total + hessian
    return total


def _origin(node: Node) -> Node:
    """The activation itself, when a smoothing product stands between it and the layer."""
    if node.target is aten.mul.Tensor and isinstance(node.args[1], Node) and node.args[1].name.startswith(_SMOOTH):
        return node.args[0]  # type: ignore[return-value]
    return node


def _smooth(
    program: ExportedProgram,
    sites: Sequence[Site],
    plan: Mapping[str, Scheme],
    statistics: Mapping[str, Statistics],
    strength: float,
) -> dict[str, torch.Tensor]:
    """Multiply columns of weights, and divide the activations that they meet, so that both are easy to round.

    s = max|x|^a / max|w|^(1-a) by column (SmoothQuant, arXiv:2211.10438). Layers that read one activation share it.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    groups: dict[str, list[tuple[Site, Node]]] = {}
    for site in sites:
        if site.name in plan and plan[site.name].activations != "none" and len(site.uses) == 1:
            use = nodes[site.uses[0].node]
            if site.uses[0].kind == "linear" and layer_input(use).name in statistics:
                groups.setdefault(layer_input(use).name, []).append((site, use))
    factors = {}
    for number, (source, members) in enumerate(groups.items()):
        largest = statistics[source].largest
        matrices = [site.as_matrix(program.state_dict[site.name]) for site, _ in members]
        weights = torch.stack([matrix.abs().amax(0) for matrix in matrices]).amax(0)
        if not statistics[source].rows or not float(largest.max()) > 0:
            continue
        floor = 1e-3
        activations = largest.clamp(min=floor * float(largest.max()))
        factor = activations**strength / weights.clamp(min=floor * float(weights.max()) + 1e-12) ** (1 - strength)
        factor = factor / factor.log().mean().exp()  # around 1: products stay where fp16 is good
        factors[source] = factor
        for (site, _), matrix in zip(members, matrices, strict=True):
            weight = program.state_dict[site.name]
            _store(program, site.name, site.as_parameter(matrix * factor, weight))
        inverse = add_buffer(program, f"{_SMOOTH}_{number}", (1 / factor).to(matrices[0].dtype))
        first = members[0][1]
        smoothed = _insert_product(program, nodes[source], inverse, first)
        for _, use in members:
            use.replace_input_with(nodes[source], smoothed)
    return factors


def _insert_product(program: ExportedProgram, source: Node, factor: Node, before: Node) -> Node:
    with program.graph.inserting_before(before):
        node = program.graph.call_function(aten.mul.Tensor, (source, factor))
    value = source.meta["val"]
    node.meta["val"] = torch.empty_like(value)
    for key in ("nn_module_stack", "stack_trace", "from_node"):
        if key in before.meta:
            node.meta[key] = before.meta[key]
    return node


def _store(program: ExportedProgram, name: str, value: torch.Tensor) -> None:
    old = program.state_dict[name]
    parameter = isinstance(old, torch.nn.Parameter)
    program.state_dict[name] = torch.nn.Parameter(value, requires_grad=False) if parameter else value


def add_buffer(program: ExportedProgram, name: str, value: torch.Tensor) -> Node:
    """A new constant of a program, as a persistent buffer, and the node that reads it."""
    graph, signature = program.graph, program.graph_signature
    taken = {node.name for node in graph.nodes}
    identifier = name.replace(".", "_")
    while identifier in taken:
        identifier += "_"
    kinds = [spec.kind for spec in signature.input_specs]
    place = next((i for i, kind in enumerate(kinds) if kind not in (InputKind.PARAMETER, InputKind.BUFFER)), len(kinds))
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    anchor = placeholders[place] if place < len(placeholders) else placeholders[-1].next
    with graph.inserting_before(anchor):
        node = graph.placeholder(identifier)
    fake = next(p.meta["val"].fake_mode for p in placeholders if hasattr(p.meta.get("val"), "fake_mode"))
    node.meta["val"] = fake.from_tensor(value, static_shapes=True)
    spec = InputSpec(InputKind.BUFFER, TensorArgument(node.name), name, persistent=True)
    signature.input_specs.insert(place, spec)
    program.state_dict[name] = value
    return node
