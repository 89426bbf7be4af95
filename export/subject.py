"""What is being exported, in the one form that the export works on; and how a checkpoint comes into that form.

A module of the user's: `module_subject.py`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..runtime.errors import DamagedError, RequestError
from ..runtime.golden import GoldenCase
from ..runtime.manifest import Dim, ModelSource, TensorSpec, TokenizerSpec
from ..runtime.verify import Case
from . import hf
from .calibration import text_feeds
from .capture import Trace
from .card import ModelCard
from .reference import Reference, TextInputs, golden_vectors, text_cases
from .source import Source, quiet_transformers
from .tasks import output_names, run_task
from .texts import CHOICES, PROBES, SENTENCES
from .tokenizer import carry_tokenizer, check_tokenizer, prove_tokenizer, tokenizer_inputs

# Without --max-length: what phones can afford, whatever a model could take (ModernBERT: 8192).
DEFAULT_MAX_LENGTH = 512
# Multiple choice: how many answers an artifact with bounded axes takes.
_MOST_CHOICES = 8


@dataclass(frozen=True)
class Subject:
    """Everything the export needs to know of a model.

    `write_tokenizer` writes the tokenizer folder into a bundle and describes it; None for models without text.
    `calibration` gives inputs to quantize with, from a file of the user's or palmtop's own. `notes` are things the user
    should know.
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
    write_tokenizer: Callable[[Path], TokenizerSpec] | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)
    postprocess: dict[str, Any] = field(default_factory=dict)
    card: ModelCard = field(default_factory=ModelCard)
    notes: tuple[str, ...] = ()


def checkpoint_subject(source: Source, max_length: int | None, lengths: Sequence[int] | None) -> Subject:
    """An opened checkpoint with its weights loaded.

    Args:
        max_length: longest input in tokens that was asked for; None: what the model takes, at most 512.
        lengths: the enumerated lengths that were asked for.

    Raises:
        RequestError: the model cannot take inputs that long.
        DamagedError: the tokenizer is not this model's.
    """
    model = source.load_model()
    encoder = _encoder(source, model)
    longest, notes = _max_length(source, encoder, max_length, lengths)
    names = tokenizer_inputs(source, set(inspect.signature(encoder.forward).parameters))
    texts = _text_inputs(source, names, longest)
    _check_vocabulary(source, encoder)
    inputs = tuple(TensorSpec(name, "int64", _axes(source, longest)) for name in names)
    reference = reference_of(source, model, longest)

    def write_tokenizer(root: Path) -> TokenizerSpec:
        spec = carry_tokenizer(source, root, names, longest)
        check_tokenizer(source, root / spec.path, SENTENCES)
        prove_tokenizer(source, root / spec.path, spec)
        return spec

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
        inputs=inputs,
        example=_text_example(source, texts),
        trace=hf.trace,
        cases=lambda: text_cases(reference, texts),
        golden=lambda: golden_vectors(reference, texts),
        calibration=lambda path: text_feeds(texts, path),
        write_tokenizer=write_tokenizer,
        preprocess=preprocess_of(source),
        postprocess=source.task.postprocess(source),
        card=source.card,
        notes=notes,
    )


def checkpoint_reference(
    source: Source, max_length: int, names: tuple[str, ...]
) -> tuple[Reference, TextInputs, list[Case]]:
    """The eager model of a checkpoint, how text becomes its inputs, and the usual cases: to verify a finished bundle.

    Args:
        max_length, names: longest input and input names, as the bundle's manifest states them.
    """
    reference = reference_of(source, source.load_model(), max_length)
    texts = _text_inputs(source, names, max_length)
    return reference, texts, text_cases(reference, texts)


def _encoder(source: Source, model: torch.nn.Module) -> torch.nn.Module:
    return model.encoder if source.sentence is not None else model


def _check_vocabulary(source: Source, encoder: torch.nn.Module) -> None:
    """A tokenizer of another model may give ids beyond the table of embeddings: index errors deep inside the model."""
    rows = None
    with contextlib.suppress(NotImplementedError):
        rows = getattr(encoder.get_input_embeddings(), "num_embeddings", None)
    with quiet_transformers():
        highest = max(max(ids) for ids in source.tokenizer([*SENTENCES, *(text for _, text in PROBES)])["input_ids"])
    if rows is not None and highest >= rows:
        raise DamagedError(
            f"The tokenizer of {source.id} gives id {highest}, but the model's embeddings end at {rows - 1}: "
            "the tokenizer is another model's. Remedy: copy the tokenizer files of the checkpoint that it was "
            "fine-tuned from."
        )


def reference_of(source: Source, model: torch.nn.Module, longest: int) -> Reference:
    """Of the outputs' axes only which one follows the tokens matters before capture."""
    axes = _axes(source, longest)
    per_token = source.task.name not in ("text-classification", "multiple-choice")
    outputs = tuple(
        TensorSpec(name, "float32", (axes[0], axes[-1]) if per_token and name != "sentence_embedding" else (axes[0],))
        for name in output_names(source)
    )
    return Reference(model, run_task(source), outputs)


def _text_inputs(source: Source, names: tuple[str, ...], longest: int) -> TextInputs:
    preprocess = preprocess_of(source)
    prompt = preprocess.get("prompts", {}).get(preprocess.get("default_prompt"), "")
    return TextInputs(source, names, longest, prompt=prompt)


def _axes(source: Source, longest: int) -> tuple[Dim, ...]:
    batch, sequence = Dim(symbol="batch", min=1), Dim(symbol="sequence", min=1, max=longest)
    if source.task.rank == 3:
        return batch, Dim(symbol="choices", min=1, max=_MOST_CHOICES), sequence
    return batch, sequence


def _text_example(source: Source, texts: TextInputs) -> dict[str, torch.Tensor]:
    """Two rows of ordinary text to trace with."""
    if source.task.rank == 3:
        prompts = [prompt for prompt, choices in CHOICES[:2] for _ in choices]
        answers = [answer for _, choices in CHOICES[:2] for answer in choices]
        encoded = texts.encode(prompts, answers)
        return {name: torch.from_numpy(encoded[name].reshape(2, 3, -1)) for name in texts.names}
    encoded = texts.encode([SENTENCES[5], SENTENCES[18]])
    return {name: torch.from_numpy(encoded[name]) for name in texts.names}


def preprocess_of(source: Source) -> dict[str, Any]:
    """The manifest's `preprocess` of a checkpoint: the prompts of sentence-transformers."""
    sentence = source.sentence
    if sentence is None or not any(sentence.prompts.values()):
        return {}
    return {"prompts": sentence.prompts, "default_prompt": sentence.default_prompt}


def _max_length(
    source: Source, encoder: torch.nn.Module, asked: int | None, lengths: Sequence[int] | None
) -> tuple[int, tuple[str, ...]]:
    """The longest input the artifacts will take, and what to tell the user about it."""
    limits = {"its position embeddings": _position_limit(source, encoder)}
    stated = source.tokenizer.model_max_length
    if stated and stated < 1_000_000:
        limits["its tokenizer"] = int(stated)
    if source.sentence is not None and source.sentence.max_length:
        limits["its sentence-transformers settings"] = source.sentence.max_length
    known = {reason: limit for reason, limit in limits.items() if limit}
    most = min(known.values(), default=None)
    wanted = max(lengths) if lengths else asked
    room = source.tokenizer.num_special_tokens_to_add(pair=True) + 1
    if wanted is not None:
        positions = limits["its position embeddings"]
        if positions and wanted > positions:
            raise RequestError(f"{source.id} takes at most {positions} tokens; {wanted} were asked for.")
        if min([wanted, *(lengths or [])]) < room:
            raise RequestError(
                f"A length of {min([wanted, *(lengths or [])])} leaves no room for text: use at least {room}."
            )
        return wanted, ()
    if most is None or most > DEFAULT_MAX_LENGTH:
        could = "any length" if most is None else f"{most} tokens"
        return DEFAULT_MAX_LENGTH, (
            f"The model could take {could}; exported up to {DEFAULT_MAX_LENGTH} (see --max-length).",
        )
    return most, ()


def _position_limit(source: Source, encoder: torch.nn.Module) -> int | None:
    """How many tokens have a position: the table's rows, less those that RoBERTa keeps before the first."""
    for name, module in encoder.named_modules():
        if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in (
            "position_embeddings",
            "pos_embeddings",
        ):
            offset = module.padding_idx + 1 if module.padding_idx is not None else 0
            return module.num_embeddings - offset
    config = source.config
    stated = getattr(config, "max_position_embeddings", None)
    if isinstance(stated, int) and stated > 0:
        # A table under another name: RoBERTa-like models count positions from the padding id on.
        return stated
    return None
