"""The PyTorch side of Core ML: from a captured program to one whose every operation coremltools can take.

Only what coremltools cannot take is decomposed: taking everything apart (`run_decompositions()`) splits `linear`,
`layer_norm`, `gelu` and attention into pieces that its fusion passes then fail to find again.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable

import torch
from torch._export.verifier import Verifier
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.fx import Graph, Node

from ...runtime.manifest import Artifact, Dim
from ..capture import Captured
from ..generation.states import into_states
from ..graph import insert, rename_outputs
from ..modules import module_path

aten = torch.ops.aten

# Keys of `Node.meta` that coremltools copies to every MIL operation made from a node: an integer, by which the node is
# found again, and a string, in which we put the node's operator instead of where in the source it was called.
HANDLE = "debug_handle"
ORIGIN = "stack_trace"

# Where a slice ends that goes to the end of its axis.
_END = 2**63 - 1

_NEW = {aten.new_ones.default: 1, aten.new_zeros.default: 0}

Convertible = Callable[[object], bool]


def specialize(captured: Captured, artifact: Artifact) -> Captured:
    """The captured program with its axes narrowed to those of the artifact, and its cache in the artifact's states."""
    planned = {spec.name: spec for spec in artifact.inputs}
    narrowed: dict[str, Dim] = {}
    for captured_spec in captured.inputs:
        if captured_spec.name in planned:
            for captured_dim, dim in zip(captured_spec.dims, planned[captured_spec.name].dims, strict=True):
                if captured_dim.symbol is not None:
                    narrowed[captured_dim.symbol] = dim
    specialized = captured.specialize(narrowed)
    return into_states(specialized) if artifact.states else specialized


def lowered_graph(program: ExportedProgram, convertible: Convertible) -> ExportedProgram:
    """A copy of the program, free of what `convertible` refuses as far as decomposition can make it.

    `convertible(target)` says whether coremltools takes a node's target. The weights are shared with `program`.
    """
    prepared = _as_aten(program) if all(map(_is_plain, _calls(program.graph))) else None
    if prepared is None or inconvertible(prepared, convertible):
        table = {op: rule for op, rule in torch.export.default_decompositions().items() if not convertible(op)}
        prepared = program.run_decompositions(table)
        respell(prepared.graph)
    name_apart_from_words(prepared.graph)
    say_sizes(prepared)
    separate_outputs(prepared)
    static_shapes(prepared.graph)
    spell_out_defaults(prepared.graph)
    prepared.graph.eliminate_dead_code()
    stamp(prepared.graph)
    return prepared


def inconvertible(program: ExportedProgram, convertible: Convertible) -> list[Node]:
    """The nodes that coremltools cannot take, in order."""
    return [node for node in _calls(program.graph) if not convertible(node.target)]


def respell(graph: Graph) -> None:
    """Say with operations that coremltools has what it lacks a word for, where one such operation is enough.

    Each is one that decomposition would get to as well, by tracing the whole program anew.
    """
    for node in _calls(graph):
        if node.target in (aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar):
            node.target = aten.where.self  # coremltools takes numbers there
        elif node.target in _NEW:  # of the dtype that the other tensor has, which coremltools does not look at
            kwargs = {"dtype": node.meta["val"].dtype}
            node.target, node.args, node.kwargs = aten.full.default, (node.args[1], _NEW[node.target]), kwargs
        elif node.target is aten.scatter.value:
            _scatter_of_tensor(node)
        elif node.target is aten.chunk.default:
            source, pieces, axis = (*node.args, 0)[:3]
            size = source.meta["val"].shape[axis]
            if isinstance(size, int):
                node.target, node.args = aten.split.Tensor, (source, -(-size // pieces), axis)
        elif node.target is aten.eye.default and not isinstance(node.args[0], int):
            _becomes(node, _identity_matrix(node))
        elif node.target is aten.linear.default and node.args[1].meta["val"].dim() == 1:
            column = insert(graph, node, aten.unsqueeze.default, (node.args[1], 0))
            product = insert(graph, node, aten.linear.default, (node.args[0], column))
            _becomes(node, insert(graph, node, aten.squeeze.dim, (product, -1)))
        elif node.target is aten.im2col.default:
            _becomes(node, _windows(node))


def _becomes(node: Node, other: Node) -> None:
    """Let a node compute what one just inserted before it does, under its own name, which outputs are known by."""
    node.target, node.args, node.kwargs = other.target, other.args, other.kwargs
    node.graph.erase_node(other)


def _identity_matrix(node: Node) -> Node:
    """Ones where a place is as far down as it is to the right: coremltools makes a constant, of a known size."""
    places = insert(node.graph, node, aten.arange.default, (node.args[0],))
    down = insert(node.graph, node, aten.unsqueeze.default, (places, 1))
    ones = insert(node.graph, node, aten.eq.Tensor, (down, places))
    return insert(node.graph, node, aten.to.dtype, (ones, node.meta["val"].dtype))


def _windows(node: Node) -> Node:
    """`unfold` as a slice for each place of its window: (rows, channels * places, windows).

    coremltools makes a convolution of zeros and ones of it, for a known number of rows.
    """
    source, kernel, dilation, padding, stride = node.args
    graph = node.graph
    if any(padding):
        edges = [padding[1], padding[1], padding[0], padding[0]]
        source = insert(graph, node, aten.constant_pad_nd.default, (source, edges, 0.0))
    slices = []
    for place in itertools.product(*map(range, kernel)):
        cut = source
        for axis, (at, size, apart, step) in enumerate(zip(place, kernel, dilation, stride, strict=True), start=2):
            left_out = (size - 1 - at) * apart  # behind the last window's place
            if size > 1 or step > 1:
                end = -left_out or _END
                cut = insert(graph, node, aten.slice.Tensor, (cut, axis, at * apart, end, step))
        slices.append(cut)
    together = insert(graph, node, aten.stack.default, (slices, 2))
    rows, channels = (insert(graph, node, aten.sym_size.int, (source, 0)), source.meta["val"].shape[1])
    return insert(graph, node, aten.reshape.default, (together, [rows, channels * math.prod(kernel), -1]))


def _scatter_of_tensor(node: Node) -> None:
    """One number scattered becomes a tensor of it, which coremltools cannot make where the size is not known."""
    source, axis, index, number = node.args
    dtype = node.meta["val"].dtype
    of_zeros = insert(node.graph, node, aten.to.dtype, (insert(node.graph, node, aten.mul.Tensor, (index, 0)), dtype))
    node.target, node.args = (
        aten.scatter.src,
        (source, axis, index, insert(node.graph, node, aten.add.Tensor, (of_zeros, number))),
    )


def output_copy(value: torch.Tensor) -> torch.Tensor:
    """An output's own copy of a value: an operation that only coreml_compat.py translates."""
    return value.clone()


def name_apart_from_words(graph: Graph) -> None:
    """No value is called what an operation is told by a word (`gelu(x, approximate="tanh")` behind a `tanh`):
    coremltools takes the word for the value. Outputs are renamed with their nodes, by `say_sizes`.
    """
    calls = _calls(graph)
    words = {word for node in calls for word in (*node.args, *node.kwargs.values()) if isinstance(word, str)}
    for node in calls:
        if node.name in words:
            node._rename(f"{node.name}_value")


def say_sizes(program: ExportedProgram) -> None:
    """What is left of an unknown size may be of a known one (the end of a cache); coremltools has to be told."""
    for node in _calls(program.graph):
        if node.target is not aten.slice.Tensor or not _of_known_size(node) or _of_known_size(node.args[0]):
            continue
        readers = list(node.users)
        said = insert(program.graph, node.next, aten.reshape.default, (node, list(node.meta["val"].shape)))
        for reader in readers:
            reader.replace_input_with(node, said)
    program._graph_signature = copy.deepcopy(program.graph_signature)  # which the captured program may share
    rename_outputs(program)


def _of_known_size(node: Node) -> bool:
    return all(isinstance(size, int) for size in node.meta["val"].shape)


def separate_outputs(program: ExportedProgram) -> None:
    """Give every output a value of its own: Core ML names values, and one value cannot be two outputs, or an input."""
    output, signature = program.graph.output_node(), program.graph_signature
    values: list = list(output.args[0])
    specs = list(signature.output_specs)
    for index, value in enumerate(values):
        if isinstance(value, Node) and (value.op == "placeholder" or value in values[:index]):
            with program.graph.inserting_before(output):
                copy = program.graph.call_function(output_copy, (value,))
            copy.meta.update(value.meta)
            values[index] = copy
            specs[index] = dataclasses.replace(specs[index], arg=TensorArgument(copy.name))
    output.args = (tuple(values),)
    program._graph_signature = dataclasses.replace(signature, output_specs=specs)


def stamp(graph: Graph) -> None:
    """Number the nodes, so that MIL operations can be led back to them (`modules_by_handle`)."""
    for number, node in enumerate(graph.nodes):
        node.meta[HANDLE], node.meta[ORIGIN] = number, str(node.target)


def modules_by_handle(graph: Graph) -> dict[int, str]:
    """Stamped number -> path of the PyTorch module the node came from."""
    paths = {node.meta[HANDLE]: module_path(node) for node in graph.nodes}
    # torch.export's name for a node of no module: one that measures an input.
    return {handle: "" if path.startswith("_empty_nn_module_stack") else path for handle, path in paths.items()}


def static_shapes(graph: Graph) -> None:
    """Write shapes as constants where they are: `reshape(x, (1, s, 12, 32))` becomes `reshape(x, (1, -1, 12, 32))`.

    Otherwise coremltools computes each shape at run time, by `shape`, `gather` and `concat`.
    """
    for node in _calls(graph):
        if node.target in (aten.reshape.default, aten.view.default, aten._unsafe_view.default):
            sizes = _constant_or_minus_one(node.meta["val"].shape)
            if sizes.count(-1) <= 1:
                node.args = (node.args[0], sizes)
        elif node.target is aten.expand.default:
            source, target = node.args[0].meta["val"].shape, node.meta["val"].shape
            new = len(target) - len(source)
            if new == 0:
                same = [str(a) == str(b) for a, b in zip(source, target, strict=True)]
                asked: list = list(node.args[1])
                node.args = (node.args[0], [-1 if kept else size for kept, size in zip(same, asked, strict=True)])


def spell_out_defaults(graph: Graph) -> None:
    """Give Fourier transforms all their arguments: coremltools counts them, and `torch.export` leaves defaults out.

    GELU too: coremltools 9.0 does not see that it is to be the approximate one, by tanh, where that is named.
    """
    for node in _calls(graph):
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.name.startswith(("aten::fft_", "aten::gelu")):
            given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
            node.args = tuple(given.get(argument.name, argument.default_value) for argument in schema.arguments)
            node.kwargs = {}


def _constant_or_minus_one(shape: torch.Size) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in shape]


def _calls(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "call_function"]


def _is_plain(node: Node) -> bool:
    """Whether a node computes new values and changes none, which in-place operations do not."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or not schema.is_mutable


def _as_aten(program: ExportedProgram) -> ExportedProgram:
    """The same program under another name: what `torch.export` calls its TRAINING dialect, coremltools refuses."""
    graph = Graph()
    output = graph.graph_copy(program.graph, {}, return_output_node=True)
    assert output is not None
    value, old = output
    graph.output(value).meta.update(old.meta)
    respell(graph)
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=program.graph_signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        constants=program.constants,
        verifiers=[Verifier],
    )
