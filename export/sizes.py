"""Sizes of axes: what was asked for in torch.export's words, and what a captured program takes and gives in ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.export import Dim as TorchDim
from torch.export import ExportedProgram

from ..runtime.errors import RequestError
from ..runtime.manifest import Dim, TensorSpec

# torch.export needs an upper bound to write down when a program has none; beyond any real axis.
_NO_UPPER_BOUND = 2**31 - 1


def same_symbols(program: ExportedProgram, inputs: Sequence[TensorSpec]) -> None:
    """Let axes that were asked to be of one size be one symbol: where no operation joins them (the caches of two
    layers), torch.export keeps a symbol for each, and nothing after it knows that they agree.
    """
    values = placeholder_values(program)
    first: dict[str, torch.SymInt] = {}
    for spec in inputs:
        for size, dim in zip(values[spec.name].shape, spec.dims, strict=True):
            if dim.symbol is None or isinstance(size, int) or not size.node.expr.is_symbol:
                continue
            known = first.setdefault(dim.symbol, size)
            if known.node.expr.is_symbol and known.node.expr != size.node.expr:
                size.node.shape_env._set_replacement(size.node.expr, known.node.expr, "axes of one size")


def sizes_asked(inputs: Sequence[TensorSpec], example: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, int, int]]:
    """Of each symbol: least, traced and greatest size."""
    return {
        str(dim.symbol): (dim.min or 0, example[spec.name].shape[axis], dim.largest or _NO_UPPER_BOUND)
        for spec in inputs
        for axis, dim in enumerate(spec.dims)
        if not dim.is_constant
    }


def within(dim: Dim, ranges: Mapping[str, tuple[int, int]]) -> Dim:
    """An axis narrowed to the range that its symbol was found to have."""
    if dim.symbol not in ranges or dim.is_constant:
        return dim
    low, high = ranges[str(dim.symbol)]
    return _narrowed(dim, low, None if high >= _NO_UPPER_BOUND else high)


def dynamic_shapes(
    inputs: Sequence[TensorSpec], example: Mapping[str, torch.Tensor], automatic: set[str]
) -> dict[str, dict[int, object]] | None:
    """What torch.export is told: one of its dims for each symbol; of those in `automatic` it finds the range itself.

    Raises:
        RequestError: the example has another size on an axis that is constant.
    """
    shared: dict[str, object] = {}
    shapes: dict[str, dict[int, object]] = {}
    for spec in inputs:
        axes: dict[int, object] = {}
        for axis, dim in enumerate(spec.dims):
            if dim.is_constant:
                if example[spec.name].shape[axis] != dim.constant:
                    size = example[spec.name].shape[axis]
                    raise RequestError(f"Input '{spec.name}' has size {size} on axis {axis}, not {dim.constant}.")
                continue
            low, high = dim.min or 0, dim.largest or _NO_UPPER_BOUND
            if dim.values is not None:
                low = min(dim.values)
            if dim.symbol in automatic:
                axes[axis] = TorchDim.AUTO(min=max(low, 2), max=high)
            else:
                symbol = str(dim.symbol)
                if symbol not in shared:
                    shared[symbol] = TorchDim(symbol, min=low, max=high)
                axes[axis] = shared[symbol]
        shapes[spec.name] = axes
    return shapes if any(shapes.values()) else None


def input_specs(
    program: ExportedProgram, inputs: Sequence[TensorSpec]
) -> tuple[tuple[TensorSpec, ...], tuple[str, ...]]:
    """The dims the program really has, and a note for each axis where capture had to narrow what was asked for."""
    values = placeholder_values(program)
    specs, notes = [], []
    for spec in inputs:
        dims = []
        for axis, dim in enumerate(spec.dims):
            size = values[spec.name].shape[axis]
            if dim.is_constant:
                narrowed = dim
            elif isinstance(size, int) or size.node.expr.is_number:
                narrowed = Dim(symbol=dim.symbol, values=(int(size),))
            else:
                narrowed = _narrowed(dim, *bounds(program, size))
            if narrowed != dim:
                notes.append(f"The model takes {narrowed}, not {dim}.")
            dims.append(narrowed)
        specs.append(TensorSpec(spec.name, spec.dtype, tuple(dims)))
    return tuple(specs), tuple(dict.fromkeys(notes))


def _narrowed(dim: Dim, low: int, high: int | None) -> Dim:
    if dim.values is not None:
        return Dim(symbol=dim.symbol, values=tuple(v for v in dim.values if v >= low and (high is None or v <= high)))
    highest = dim.max if high is None else (high if dim.max is None else min(high, dim.max))
    return Dim(symbol=dim.symbol, min=max(low, dim.min or 0), max=highest)


def bounds(program: ExportedProgram, size: torch.SymInt) -> tuple[int, int | None]:
    """The least and the greatest that a size may be; None for a greatest that is not bounded."""
    found = program.range_constraints.get(size.node.expr)
    if found is None:
        return 0, None
    high = int(found.upper) if found.upper.is_number and found.upper < _NO_UPPER_BOUND else None
    return int(found.lower), high


def placeholder_values(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """The fake tensors of the inputs, by name."""
    names = set(program.graph_signature.user_inputs)
    return {
        node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names
    }


def output_specs(
    program: ExportedProgram, names: Sequence[str], inputs: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    """The outputs, with the symbols of the inputs where a size is one of theirs.

    Raises:
        RequestError: there are more or fewer outputs than names.
    """
    placeholders = placeholder_values(program)
    by_expression = {
        str(placeholders[spec.name].shape[axis]): dim
        for spec in inputs
        for axis, dim in enumerate(spec.dims)
        if not dim.is_constant
    }
    values = [node.meta["val"] for node in program.graph.output_node().args[0]]
    if len(values) != len(names):
        raise RequestError(f"The model gives {len(values)} outputs, {len(names)} were named: {', '.join(names)}.")
    specs = []
    for name, value in zip(names, values, strict=True):
        dims = tuple(
            Dim(size=int(size))
            if isinstance(size, int) or size.node.expr.is_number
            else by_expression.get(str(size), Dim(symbol=_readable(str(size), by_expression), min=0, max=None))
            for size in value.shape
        )
        specs.append(TensorSpec(name, str(value.dtype).removeprefix("torch."), dims))
    return tuple(specs)


def _readable(expression: str, by_expression: Mapping[str, Dim]) -> str:
    """`8*s41` becomes `8*sequence`."""
    for symbol, dim in by_expression.items():
        expression = expression.replace(symbol, dim.symbol or symbol)
    return expression


def resized(tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """The example cut or repeated to sizes that the narrowed dims admit."""
    for axis, dim in enumerate(spec.dims):
        size = tensor.shape[axis]
        if dim.admits(size):
            continue
        low = min(dim.values) if dim.values is not None else dim.size or dim.min or 1
        wanted = low if size < low or dim.is_constant else dim.largest or size
        index = torch.arange(wanted) % size
        tensor = tensor.index_select(axis, index)
    return tensor.contiguous()
