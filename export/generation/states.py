"""A cache that the artifact keeps itself: inputs and outputs of a captured program become buffers that it changes."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind
from torch.utils import _pytree as pytree

from ...runtime.manifest import CACHE_LAYOUT, StateSpec, TensorSpec
from ..capture import Captured


def can_keep(captured: Captured) -> bool:
    """Whether a program's cache may be state of its artifact: it has one, of constant size, for tokens alone.

    What reads an encoder's states is searched with beams, whose caches change places; those stay inputs and outputs.
    """
    given = {before for before, _ in captured.caches}
    fixed = all(dim.is_constant for name in given for dim in captured.input(name).dims)
    others = {spec.name for spec in captured.inputs} - given
    return bool(given) and fixed and len(others) <= 2


def state_specs(captured: Captured, dtype: str) -> tuple[StateSpec, ...]:
    """The states that `into_states` makes, as the manifest describes them."""
    return tuple(StateSpec(name, dtype, captured.input(name).dims, CACHE_LAYOUT) for name, _ in captured.caches)


def without_caches(
    captured: Captured,
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs that are left when the cache is state."""
    before = {name for name, _ in captured.caches}
    after = {name for _, name in captured.caches}
    return (
        tuple(spec for spec in captured.inputs if spec.name not in before),
        tuple(spec for spec in captured.outputs if spec.name not in after),
    )


def into_states(captured: Captured) -> Captured:
    """The program with its cache in buffers of its own, zeros at first, named like the inputs that they were.

    The result can be lowered and not be run: what runs in Python would leave its keys in the artifact.
    """
    inputs, outputs = without_caches(captured)
    program = _with_buffers(captured.private_program(), captured)
    example = {spec.name: captured.example[spec.name] for spec in inputs}
    return dataclasses.replace(captured, program=program, inputs=inputs, outputs=outputs, example=example, caches=())


def _with_buffers(program: ExportedProgram, captured: Captured) -> ExportedProgram:
    signature, graph = program.graph_signature, program.graph
    output = graph.output_node()
    after = [spec.name for spec in captured.outputs]
    written = {before: after.index(name) for before, name in captured.caches}
    state = dict(program.state_dict)
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    first_input = next(
        placeholders[spec.arg.name]
        for spec in signature.input_specs
        if spec.kind == InputKind.USER_INPUT and spec.arg.name not in written
    )

    kept, buffers = [], []
    for spec in signature.input_specs:
        if spec.kind != InputKind.USER_INPUT or spec.arg.name not in written:
            kept.append(spec)
            continue
        name = spec.arg.name
        node = placeholders[name]
        node.name = node.target = f"b_{name}"  # as torch.export has it: what a buffer is called is not its value's name
        argument = dataclasses.replace(spec.arg, name=node.name)
        buffers.append(InputSpec(InputKind.BUFFER, argument, name, persistent=True))
        state[name] = torch.zeros_like(captured.example[name])
        first_input.prepend(node)
    inputs = [spec for spec in kept if spec.kind != InputKind.USER_INPUT]
    inputs += [*buffers, *(spec for spec in kept if spec.kind == InputKind.USER_INPUT)]

    values, specs = list(output.args[0]), list(signature.output_specs)
    mutations = [
        dataclasses.replace(specs[place], kind=OutputKind.BUFFER_MUTATION, target=name)
        for name, place in written.items()
    ]
    others = [place for place in range(len(values)) if place not in written.values()]
    output.args = ((*(values[place] for place in written.values()), *(values[place] for place in others)),)
    output.meta["val"] = tuple(value.meta["val"] for value in output.args[0])

    changed = copy.copy(signature)
    changed.input_specs, changed.output_specs = inputs, [*mutations, *(specs[place] for place in others)]
    graph.lint()
    program.graph_module.recompile()
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=changed,
        state_dict=state,
        range_constraints=program.range_constraints,
        module_call_graph=_called(
            program, [spec.arg.name for spec in kept if spec.kind == InputKind.USER_INPUT], len(others)
        ),
        constants=program.constants,
        verifiers=program.verifiers,
    )


def _called(program: ExportedProgram, names: list[str], results: int) -> list:
    """How the whole program is called: with these inputs, by keyword, for a tuple of so many results."""
    entry = copy.copy(program.module_call_graph[0])
    entry.signature = dataclasses.replace(
        entry.signature,
        inputs=[argument for argument in entry.signature.inputs if argument.name in names],
        outputs=entry.signature.outputs[:results],
        in_spec=pytree.tree_structure(((), dict.fromkeys(names, 0))),
        out_spec=pytree.tree_structure((0,) * results),
        forward_arg_names=names,
    )
    return [entry]
