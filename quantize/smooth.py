"""Take unevenness from activations into weights, so that both are easy to round (SmoothQuant, arXiv:2211.10438)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from .calibrate import Statistics
from .program import add_buffer, insert, store
from .sites import Site, find_sites, layer_input

aten = torch.ops.aten

# Channels that calibration hardly saw are taken to be this much of the largest: a later input may use them.
_FLOOR = 1e-3
# What these give has no channels that are large in every row. Where one is large in a few rows, dividing it makes those
# hardly evener, and the columns of weights less even: MiniLM's in int8 come out a quarter further from fp32.
_EVEN = frozenset(
    {
        *(aten.gelu.default, aten.relu.default, aten.silu.default, aten.hardswish.default, aten.tanh.default),
        *(aten.scaled_dot_product_attention.default, aten.matmul.default, aten.bmm.default),
    }
)
_SAME_NUMBERS = frozenset(
    {
        *(aten.reshape.default, aten.view.default, aten.transpose.int, aten.permute.default, aten.flatten.using_ints),
        *(aten.clone.default, aten.contiguous.default, aten.unsqueeze.default, aten.squeeze.dim),
    }
)
# What the constants in the graph are called.
_PREFIX = "palmtop_smooth."


def smooth(
    program: ExportedProgram, sites: Sequence[Site], statistics: Mapping[str, Statistics], strength: float
) -> dict[str, Statistics]:
    """Divide what linear layers read, channel by channel, and multiply the columns of their weights, in place.

    s = max|x|^strength / max|w|^(1 - strength) by channel. Layers that read one activation share the division, which is
    one product with a constant in the graph. What an activation function or an attention gives is left alone.

    Args:
        program: one whose `state_dict` is its own.

    Returns:
        The statistics of what the layers read now, by activation; where nothing was smoothed, as before.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    groups: dict[str, list[tuple[Site, Node]]] = {}
    for site in sites:
        if len(site.uses) == 1 and site.uses[0].kind == "linear":
            use = nodes[site.uses[0].node]
            groups.setdefault(layer_input(use).name, []).append((site, use))
    found = dict(statistics)
    for source, members in groups.items():
        seen = statistics.get(source)
        if seen is None or not float(seen.largest.max()) > 0 or origin(nodes[source]).target in _EVEN:
            continue
        matrices = [site.as_matrix(program.state_dict[site.name]) for site, _ in members]
        factor = _factors(seen.largest, torch.stack([m.abs().amax(0) for m in matrices]).amax(0), strength)
        for (site, _), matrix in zip(members, matrices, strict=True):
            store(program, site.name, site.as_parameter(matrix * factor, program.state_dict[site.name]))
        smoothed = _multiply(program, nodes[source], 1 / factor, [use for _, use in members])
        hessian = None if seen.hessian is None else seen.hessian / torch.outer(factor, factor)
        found[smoothed.name] = Statistics(seen.lows / factor, seen.highs / factor, seen.rows, hessian)
    program.graph.lint()
    program.graph_module.recompile()
    return found


def divisions(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """What `smooth` multiplies the inputs of layers by, by the name of their weight."""
    nodes = {node.name: node for node in program.graph.nodes}
    buffers = program.graph_signature.inputs_to_buffers
    found = {}
    for site in find_sites(program):
        for use in site.uses:
            product = layer_input(nodes[use.node]) if use.kind == "linear" else None
            factor = product.args[1] if product is not None and product.target is aten.mul.Tensor else None
            name = buffers.get(factor.name, "") if isinstance(factor, Node) else ""
            if name.startswith(_PREFIX):
                found[site.name] = program.state_dict[name]
    return found


def divide(program: ExportedProgram, inverses: Mapping[str, torch.Tensor]) -> None:
    """Multiply the inputs of layers, as `divisions` says of another program of the same model, in place."""
    nodes = {node.name: node for node in program.graph.nodes}
    groups: dict[tuple[str, int], list[Node]] = {}
    for site in find_sites(program):
        for use in site.uses:
            if use.kind == "linear" and site.name in inverses:
                source = layer_input(nodes[use.node]).name
                groups.setdefault((source, id(inverses[site.name])), []).append(nodes[use.node])
    values = {id(value): value for value in inverses.values()}
    for (source, which), readers in groups.items():
        _multiply(program, nodes[source], values[which], readers)
    program.graph.lint()
    program.graph_module.recompile()


def _factors(activations: torch.Tensor, weights: torch.Tensor, strength: float) -> torch.Tensor:
    activations = activations.clamp(min=_FLOOR * float(activations.max()))
    weights = weights.clamp(min=_FLOOR * float(weights.max()) + 1e-12)
    factor = activations**strength / weights ** (1 - strength)
    return factor / factor.log().mean().exp()  # around 1: products stay where fp16 is good


def origin(activation: Node) -> Node:
    """Where the numbers of an activation, in whatever shape, come from."""
    while activation.target in _SAME_NUMBERS:
        activation = activation.all_input_nodes[0]
    return activation


def _multiply(program: ExportedProgram, source: Node, inverse: torch.Tensor, readers: Sequence[Node]) -> Node:
    buffer = add_buffer(program, _PREFIX + source.name, inverse.to(torch.float32))
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    first = min(readers, key=order.__getitem__)
    smoothed = insert(first, aten.mul.Tensor, (source, buffer), torch.empty_like(source.meta["val"]))
    for use in readers:
        use.replace_input_with(source, smoothed)
    return smoothed
