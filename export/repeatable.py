"""What no format can express: a program that says something else the next time it is run."""

from __future__ import annotations

import dataclasses

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from ..runtime.errors import UnsupportedError
from .modules import module_path, user_path

# Attention, recurrent layers and dropout itself draw when they are told to; of models in eval mode they are not.
_SWITCHES = {"dropout_p", "dropout", "train", "training"}


def forget_overwritten(program: ExportedProgram) -> None:
    """Let go of buffers that every run writes without having read them: they carry nothing from run to run.

    LongRoPE keeps the frequencies of the last call so (transformers.modeling_rope_utils).
    """
    signature, output = program.graph_signature, program.graph.output_node()
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    read = {buffer for name, buffer in signature.inputs_to_buffers.items() if placeholders[name].users}
    kept = [
        (value, spec)
        for value, spec in zip(output.args[0], signature.output_specs, strict=True)
        if spec.kind is not OutputKind.BUFFER_MUTATION or spec.target in read
    ]
    if len(kept) == len(signature.output_specs):
        return
    output.args = (tuple(value for value, _ in kept),)
    program._graph_signature = dataclasses.replace(signature, output_specs=[spec for _, spec in kept])
    program.graph_module.recompile()


def refuse_state(program: ExportedProgram) -> None:
    """Exporters drop what a model writes into its buffers without a word (ONNX), or keep it between calls."""
    signature = program.graph_signature
    buffers = [user_path(name) for name in signature.buffers_to_mutate.values()]
    written = sorted({*buffers, *signature.user_inputs_to_mutate.values()})
    if written:
        raise UnsupportedError(
            f"The model changes {', '.join(written)} when it runs, and no format keeps that. "
            "Remedy: take the value as an input and give the new one as an output."
        )


def refuse_randomness(program: ExportedProgram) -> None:
    """What a model draws is not what its artifact would draw, so there would be nothing to compare."""
    for node in program.graph.nodes:
        operator = node.target
        if not isinstance(operator, torch._ops.OpOverload) or not node.users:
            continue
        switched = _SWITCHES & {argument.name for argument in operator._schema.arguments}
        if torch.Tag.nondeterministic_seeded in operator.tags and not switched:
            where = module_path(node) or "the model itself"
            raise UnsupportedError(
                f"The model draws random numbers when it runs ({operator} in {where}), so it says something "
                "else each time, and no artifact can be held to it. "
                "Remedy: take them as an input, or switch them off in its configuration."
            )
