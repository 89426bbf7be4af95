"""Capture: a PyTorch model becomes one exported program with named axes.

One `torch.export` serves every target. Hugging Face models go through `transformers.exporters` (see `hf.py`), any
other `torch.nn.Module` through plain `torch.export`; both end in a `Captured`, normalised once by `normalize.py`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..quantize.weights import QuantizedWeight
from ..runtime.errors import UnsupportedError
from ..runtime.manifest import Dim, TensorSpec
from . import constraints
from .normalize import normalize
from .repeatable import forget_overwritten, refuse_randomness, refuse_state
from .sizes import dynamic_shapes, input_specs, output_specs, resized, same_symbols, sizes_asked, within

log = logging.getLogger("palmtop")

_ONE_ROW = "The model's code is bound to the batch that it is traced with: artifacts take one row at a time."

# Each attempt narrows at least one axis or hands it to torch.export.
_MOST_ATTEMPTS = 5

Trace = Callable[[torch.nn.Module, dict[str, torch.Tensor], dict[str, dict[int, object]] | None], ExportedProgram]


@dataclass(frozen=True)
class Captured:
    """An exported program and what its tensors are called.

    `inputs` and `outputs` are in the program's order; their dims say which axes vary, by symbol, within which range.
    `example` holds the traced inputs by name; a dynamic program accepts any other size its dims admit.
    `method` names what of the model this is, `caches` pairs of an input and the output that takes its place in the next
    call, `told` what ExecuTorch's runners ask of a model (`get_bos_id`, `get_eos_ids`). `notes` are things a user
    should know (an axis that had to become constant, say). `quantized` has, by the name of a parameter in the program,
    the integers of weights that a plan quantizes; the program's own values are what they stand for, so that whatever a
    target does not store as integers is the same model still.
    """

    program: ExportedProgram
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: dict[str, torch.Tensor]
    notes: tuple[str, ...] = ()
    quantized: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    method: str = "forward"
    caches: tuple[tuple[str, str], ...] = ()
    told: Mapping[str, int | list[int]] = field(default_factory=dict)
    _specialized: dict[tuple, Captured] = field(default_factory=dict, repr=False, compare=False)

    @property
    def symbols(self) -> dict[str, Dim]:
        """The axes that vary, by symbol."""
        return {dim.symbol: dim for spec in self.inputs for dim in spec.dims if dim.symbol and not dim.is_constant}

    @property
    def weight_bytes(self) -> int:
        """The size of all parameters and buffers."""
        values = self.program.state_dict.values()
        return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))

    def input(self, name: str) -> TensorSpec:
        return next(spec for spec in self.inputs if spec.name == name)

    def private_program(self) -> ExportedProgram:
        """A copy whose graph a target may rewrite. Weights are shared, not copied."""
        program = self.program
        graph = torch.fx.Graph()
        copies: dict[torch.fx.Node, torch.fx.Node] = {}
        graph.output(graph.graph_copy(program.graph, copies)).meta = dict(program.graph.output_node().meta)
        for original, duplicate in copies.items():
            duplicate.name = original.name
        module = torch.fx.GraphModule(program.graph_module, graph)
        return program._update(module, copy.deepcopy(program.graph_signature))

    def specialize(self, ranges: Mapping[str, Dim]) -> Captured:
        """The same program with some axes narrowed, each to a constant or to a smaller range.

        The program is exported again from itself, not from the model, so that what was captured stays what is lowered.
        Axes that the program does not have are ignored.
        """
        symbols = self.symbols
        wanted = {symbol: dim for symbol, dim in ranges.items() if symbols.get(symbol, dim) != dim}
        if not wanted:
            return self
        key = tuple(sorted((symbol, str(dim)) for symbol, dim in wanted.items()))
        if key not in self._specialized:
            inputs = tuple(
                TensorSpec(spec.name, spec.dtype, tuple(wanted.get(dim.symbol or "", dim) for dim in spec.dims))
                for spec in self.inputs
            )
            example = {spec.name: resized(self.example[spec.name], spec) for spec in inputs}
            narrowed = capture(
                self.program.module(check_guards=False),
                example,
                inputs,
                [spec.name for spec in self.outputs],
                trace=trace_module,
                notes=self.notes,
            )
            _restore_module_stacks(narrowed.program, self.program)
            outputs = tuple(
                TensorSpec(spec.name, spec.dtype, tuple(wanted.get(dim.symbol or "", dim) for dim in spec.dims))
                for spec in self.outputs
            )
            self._specialized[key] = dataclasses.replace(
                narrowed,
                outputs=outputs,
                quantized=self.quantized,
                method=self.method,
                caches=self.caches,
                told=self.told,
            )
        return self._specialized[key]


def capture(
    model: torch.nn.Module,
    example: dict[str, torch.Tensor],
    inputs: Sequence[TensorSpec],
    output_names: Sequence[str],
    *,
    trace: Trace,
    notes: Sequence[str] = (),
) -> Captured:
    """Export `model`, called with `example` by keyword, with the axes that `inputs` let vary.

    Args:
        model: returns a tensor, or a flat tuple of tensors in the order of `output_names`. Must be in eval mode with
            `requires_grad` off.
        example: inputs to trace with, by name; sizes within the dims of `inputs`, and better not 0 or 1.
        inputs: name, dtype and dims of each input.
        trace: how to export (`trace_module`, or `hf.trace` for Transformers models).

    Raises:
        UnsupportedError: the model cannot be captured, even with constant shapes.
    """
    asked: Sequence[TensorSpec] = inputs
    automatic: set[str] = set()
    for _ in range(_MOST_ATTEMPTS):
        try:
            program = trace(model, dict(example), dynamic_shapes(asked, example, automatic))
            break
        except Exception as error:
            violated = constraints.violated(str(error), sizes_asked(asked, example))
            if not violated or violated <= automatic:
                raise _not_captured(error) from error
            # The model forbids a size that was asked for (MobileBERT needs 3 tokens): ask for the range it allows, or
            # where its condition is not about one axis alone, let torch.export find out.
            log.debug("narrowing %s after: %s", violated, error)
            ranges = constraints.allowed_ranges(str(error), sizes_asked(asked, example))
            automatic |= violated - set(ranges)
            asked = [dataclasses.replace(spec, dims=tuple(within(dim, ranges) for dim in spec.dims)) for spec in asked]
    else:
        raise UnsupportedError(
            "torch.export finds no range of sizes that this model takes. Remedy: export with --static."
        )
    program._guards_code = []  # which hold; who traces the program again would trace them too, for as long as itself
    same_symbols(program, inputs)
    program = normalize(program)
    forget_overwritten(program)
    refuse_state(program)
    refuse_randomness(program)
    specs, found = input_specs(program, inputs)
    if _one_batch_alone(specs, inputs):
        log.debug("the model is bound to the batch that it is traced with: traced again with one row")
        single = [_with_batch_of_one(spec) for spec in inputs]
        rows = {spec.name: resized(example[spec.name], spec) for spec in single}
        return capture(model, rows, single, output_names, trace=trace, notes=[*notes, _ONE_ROW])
    outputs = output_specs(program, output_names, specs)
    return Captured(program, specs, outputs, dict(example), (*notes, *found))


def _one_batch_alone(found: Sequence[TensorSpec], asked: Sequence[TensorSpec]) -> bool:
    """Whether tracing bound the model to its batch of several rows, though it was asked to vary from one on."""
    pairs = [
        (dim, wanted)
        for spec, other in zip(found, asked, strict=True)
        for dim, wanted in zip(spec.dims, other.dims, strict=True)
        if dim.symbol == "batch" and not wanted.is_constant
    ]
    return any(dim.is_constant and dim.constant != 1 and wanted.admits(1) for dim, wanted in pairs)


def _with_batch_of_one(spec: TensorSpec) -> TensorSpec:
    one = Dim(symbol="batch", values=(1,))
    return dataclasses.replace(spec, dims=tuple(one if dim.symbol == "batch" else dim for dim in spec.dims))


def trace_module(
    model: torch.nn.Module, example: dict[str, torch.Tensor], dynamic_shapes: dict[str, dict[int, object]] | None
) -> ExportedProgram:
    """Plain `torch.export` of a module called by keyword."""
    with torch.no_grad(), _named_parameters(model, example):
        return torch.export.export(model, args=(), kwargs=example, dynamic_shapes=dynamic_shapes, strict=False)


@contextlib.contextmanager
def _named_parameters(model: torch.nn.Module, example: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Give a `forward(**inputs)` a parameter for each input while it is exported: torch.export reads its signature."""
    original = model.forward
    kinds = [parameter.kind for parameter in inspect.signature(original).parameters.values()]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        yield
        return

    def forward(**inputs: torch.Tensor) -> object:
        return original(**inputs)

    named = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in example]
    forward.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    model.forward = forward
    try:
        yield
    finally:
        del model.forward  # the class's own is back


class Method(torch.nn.Module):
    """A model seen through one call: named tensors in, a flat tuple of chosen tensors out.

    `call` gets the model and the inputs and returns the outputs in order; it is where a task picks what it needs.
    """

    def __init__(self, model: torch.nn.Module, call: Callable[[torch.nn.Module, dict[str, torch.Tensor]], object]):
        super().__init__()
        self.model = model
        self.call = call
        if hasattr(model, "config"):
            self.config = model.config

    def forward(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(flat_tensors(self.call(self.model, inputs)))


def flat_tensors(value: object) -> list[torch.Tensor]:
    """All tensors of nested containers, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def call_by_name(module: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> object:
    """Call a module with named inputs, by keyword where it has such parameters, else by position."""
    parameters = inspect.signature(module.forward).parameters.values()
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    if takes_any or set(inputs) <= {parameter.name for parameter in parameters}:
        return module(**inputs)
    return module(*inputs.values())


def _restore_module_stacks(program: ExportedProgram, origin: ExportedProgram) -> None:
    """Exporting a program again forgets which PyTorch module each node came from; its `from_node` leads back."""
    stacks = {node.name: node.meta["nn_module_stack"] for node in origin.graph.nodes if "nn_module_stack" in node.meta}
    for node in program.graph.nodes:
        for source in reversed(node.meta.get("from_node", [])):
            if source.name in stacks:
                node.meta["nn_module_stack"] = stacks[source.name]
                break


def _not_captured(cause: Exception) -> UnsupportedError:
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    detail = "\n  ".join(lines[:8])
    return UnsupportedError(
        f"torch.export cannot capture this model ({type(cause).__name__}):\n  {detail}\n"
        "Remedy: remove data-dependent Python control flow from its forward, or export with --static; "
        "--debug shows the whole traceback."
    )
