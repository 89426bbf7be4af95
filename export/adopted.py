"""A program that somebody else exported, as a `Captured`: what `transformers.exporters` gives to our targets."""

from __future__ import annotations

import re

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from ..runtime.errors import UnsupportedError
from ..runtime.manifest import Dim, TensorSpec
from .capture import Captured
from .normalize import normalize
from .repeatable import refuse_randomness, refuse_state
from .sizes import bounds, output_specs

_WRAPPER = "model"


def adopt(program: ExportedProgram, longest: int) -> Captured:
    """Normalise an exported program and name its tensors, inputs as it does, outputs by their place in its result.

    Args:
        longest: upper bound of axes that vary without one.

    Raises:
        UnsupportedError: the program changes its buffers when it runs, or gives no tensor.
    """
    _wrap_modules(program)
    names = _output_names(program)
    program = normalize(program)
    refuse_state(program)
    refuse_randomness(program)
    tensors = [isinstance(node, Node) for node in program.graph.output_node().args[0]]
    if not any(tensors):
        raise UnsupportedError("The model gives no tensor, so there is nothing to convert.")
    if not all(tensors):
        _drop_constant_outputs(program)
    inputs = tuple(_input_spec(program, node, longest) for node in _tensor_inputs(program))
    taken = {spec.name for spec in inputs}
    names = [name for name, tensor in zip(names, tensors, strict=True) if tensor]
    outputs = output_specs(program, [f"{name}_out" if name in taken else name for name in names], inputs)
    return Captured(program, inputs, outputs, example={})


def constant_outputs(program: ExportedProgram) -> dict[int, object]:
    """Position and value of the outputs of a program that are no tensors."""
    return {index: node for index, node in enumerate(program.graph.output_node().args[0]) if not isinstance(node, Node)}


def _wrap_modules(program: ExportedProgram) -> None:
    """Name modules as if the model lay in a wrapper, which is where `modules.module_path` takes names from."""
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {
                key: (f"{_WRAPPER}.{path}" if path else _WRAPPER, kind) for key, (path, kind) in stack.items()
            }


def _output_names(program: ExportedProgram) -> list[str]:
    """`logits`, `hidden_states_0`, ...: where each output lies in what the model returns."""
    spec = program.call_spec.out_spec
    assert spec is not None  # programs of torch.export have one
    # Caches find their leaves by being tensors.
    result = pytree.tree_unflatten([torch.zeros(())] * spec.num_leaves, spec)
    names: list[str] = []
    for path, _ in pytree.tree_flatten_with_path(result)[0]:
        parts = "_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
        name = re.sub(r"\W+", "_", parts).strip("_")
        name = name if name[:1].isalpha() else f"output_{name}".rstrip("_")
        names.append(name if name not in names else f"{name}_{len(names)}")
    return names


def _drop_constant_outputs(program: ExportedProgram) -> None:
    output = program.graph.output_node()
    specs = program.graph_signature.output_specs
    kept = [index for index, node in enumerate(output.args[0]) if isinstance(node, Node)]
    output.args = (tuple(output.args[0][index] for index in kept),)
    specs[:] = [specs[index] for index in kept]
    program.graph_module.recompile()


def _tensor_inputs(program: ExportedProgram) -> list[Node]:
    names = set(program.graph_signature.user_inputs)
    return [
        node
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names and isinstance(node.meta.get("val"), torch.Tensor)
    ]


def _input_spec(program: ExportedProgram, node: Node, longest: int) -> TensorSpec:
    value = node.meta["val"]
    dims = tuple(_dim(program, size, longest) for size in value.shape)
    return TensorSpec(node.name, str(value.dtype).removeprefix("torch."), dims)


def _dim(program: ExportedProgram, size: int | torch.SymInt, longest: int) -> Dim:
    if isinstance(size, int) or size.node.expr.is_number:
        return Dim(size=int(size))
    low, high = bounds(program, size)
    # torch.export writes 2 for every axis that it was told nothing of, and itself lets a program run on 1.
    low = 1 if low <= 2 else low
    return Dim(symbol=str(size.node.expr), min=low, max=max(longest, low) if high is None else high)
