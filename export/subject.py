"""What is being exported, in the one form that the export works on; and how a checkpoint comes into that form.

A module of the user's: `module_subject.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..runtime.golden import GoldenCase
from ..runtime.manifest import Dim, ModelSource, TensorSpec, TokenizerSpec
from ..runtime.verify import Case
from . import hf
from .capture import Trace
from .card import ModelCard
from .inputs import Inputs, make_inputs
from .reference import Call, Reference, refuse_no_numbers
from .source import Source
from .tasks import output_names, reads_own_text, run_task

# How a cache of keys and values is kept: it grows with each call, or has room for the whole context from the start.
GROWING, STATIC = "growing", "static"


@dataclass(frozen=True)
class Part:
    """One method of a model that is captured, and lowered to an artifact of its own.

    method: `forward` of a model that is called once; `encoder` and `decoder` of one that generates.
    call: the model and named inputs to the tensors of `outputs`, in order.
    caches: pairs of an input and the output that takes its place in the next call.
    told: what ExecuTorch's runners ask of a model, by the names they use.
    free: symbols of the inputs' axes that no size may take the place of.
    widen: makes the model ready for sequences twice as long, where its tables of positions grow with what it has seen.
    """

    method: str
    call: Call
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    example: dict[str, torch.Tensor]
    caches: tuple[tuple[str, str], ...] = ()
    told: Mapping[str, int | list[int]] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    widen: Callable[[], None] | None = None


@dataclass(frozen=True)
class Subject:
    """Everything the export needs to know of a model.

    reference, inputs, example: of the whole model, called once; what artifacts are held to.
    parts: what is captured, by how a cache is kept; None: one part, the whole model.
    write_tokenizer: writes the tokenizer folder into a bundle and describes it; None for models without text.
    calibration: gives inputs to quantize with, from a file of the user's or palmtop's own.
    lines: the user's own texts as cases. generation: the manifest's field. notes: what the user should know.
    """

    info: ModelSource
    task: str
    reference: Reference
    inputs: tuple[TensorSpec, ...]
    example: dict[str, torch.Tensor]
    trace: Trace
    cases: Callable[[], list[Case]]
    golden: Callable[[], list[GoldenCase]]
    calibration: Callable[[Path | None], list[dict[str, Any]]]
    lines: Callable[[Sequence[Any]], list[Case]] | None = None
    parts: Callable[[str], tuple[Part, ...]] | None = None
    write_tokenizer: Callable[[Path], TokenizerSpec | None] | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)
    postprocess: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    card: ModelCard = field(default_factory=ModelCard)
    notes: tuple[str, ...] = ()

    def methods(self, cache: str = GROWING) -> tuple[Part, ...]:
        """What is captured for a target that keeps a cache so."""
        return self.parts(cache) if self.parts is not None else (self.whole,)

    @property
    def whole(self) -> Part:
        """The model called once: what it is without a cache, where it generates."""
        names = tuple(spec.name for spec in self.reference.outputs)
        return Part("forward", self.reference.call, self.inputs, names, self.example)


def checkpoint_subject(source: Source, max_length: int | None = None, lengths: Sequence[int] | None = None) -> Subject:
    """An opened checkpoint with its weights loaded.

    Args:
        max_length: longest input in tokens that was asked for; None: what the model takes, at most 512.
        lengths: the enumerated lengths that were asked for.

    Raises:
        RequestError: the model cannot take inputs that long, or takes inputs that palmtop does not make.
        DamagedError: the tokenizer is not this model's.
        UnsupportedError: the checkpoint's processing cannot be expressed without Python.
    """
    model = source.load_model()
    parts, generation, speaker = None, {}, None
    notes: tuple[str, ...] = ()
    if source.task.generates:
        from .generation import subject as generating
        from .generation.continuations import Speaker

        inputs = generating.generation_inputs(source, model, max_length, lengths)
        route = generating.route_of(model, inputs)
        reference = Reference(model, route.whole, (TensorSpec("logits", "float32", inputs.specs[0].dims[:1]),))
        parts, notes = route.parts, route.notes
        generation = generating.generation_settings(source, model, inputs)
        speaker = Speaker(model, generation["context"], route.options)
    else:
        inputs = make_inputs(source, _fed(source, model), max_length, lengths)
        reference = reference_of(source, model, inputs)

    def cases(batches: Sequence[tuple[str, dict[str, Any]]]) -> list[Case]:
        found = [reference.case(name, feeds) for name, feeds in batches]
        refuse_no_numbers(found, reference.outputs, source.id)
        return found if speaker is None else speaker.cases(found)

    def golden() -> list[GoldenCase]:
        found = inputs.golden(reference)
        return found if speaker is None else speaker.golden(found)

    return Subject(
        info=ModelSource(
            id=source.id,
            revision=source.revision,
            weights_sha256=source.weights_sha256(),
            architecture=source.architecture,
            model_type=source.config.model_type,
            license=source.card.license,
        ),
        task=source.task.name,
        reference=reference,
        inputs=inputs.specs,
        example=inputs.example,
        trace=hf.trace,
        cases=lambda: cases(inputs.batches()),
        golden=golden,
        calibration=inputs.calibration,
        lines=lambda lines: cases(inputs.lines(lines)),
        parts=parts,
        generation=generation,
        write_tokenizer=inputs.write,
        preprocess=inputs.preprocess,
        postprocess=source.task.postprocess(source),
        card=source.card,
        notes=(*inputs.notes, *notes),
    )


def _fed(source: Source, model: torch.nn.Module) -> torch.nn.Module:
    return model.encoder if source.sentence is not None else model


def reference_of(source: Source, model: torch.nn.Module, inputs: Inputs) -> Reference:
    """Of the outputs' axes only which one follows the tokens matters before capture."""
    batch = Dim(symbol="batch", min=1)
    longest = next((dim for spec in inputs.specs for dim in spec.dims if dim.symbol == "sequence"), None)
    names = output_names(source, model, inputs.example)
    outputs = tuple(
        TensorSpec(
            name, "float32", (batch, longest) if longest is not None and name in source.task.per_token else (batch,)
        )
        for name in names
    )
    own_text = reads_own_text(_fed(source, model), inputs.example)
    return Reference(model, run_task(source, names, own_text), outputs)
