"""Models that generate: a prompt to go on from, or what an encoder reads and what a decoder has said so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...runtime.golden import DECODER_IDS, GoldenCase
from ...runtime.manifest import Dim, TensorSpec, TokenizerSpec
from ..reference import Reference
from ..source import Source, quiet_transformers
from ..texts import LONG, SENTENCES
from ..tokenizer import carry_tokenizer, check_tokenizer, prove_tokenizer
from . import Batches, Feeds, Inputs
from .text import TextInputs, golden_case, probes, text_inputs

# How many tokens the longest prompt has that a model is verified on, and what a decoder is made to say.
_LONG_PROMPT, _SAID = 160, 20


def prompt_inputs(
    source: Source, model: torch.nn.Module, max_length: int | None = None, lengths: Sequence[int] | None = None
) -> Inputs:
    """What a decoder-only model is fed: ids of a text, one row at a time. `max_length` is that of its context.

    Errors as in `text_inputs`.
    """
    base = text_inputs(source, model, {"input_ids"}, max_length, lengths)
    longest = base.specs[0].dims[-1].largest or _LONG_PROMPT
    texts = TextInputs(source, ("input_ids",), longest)
    shorter = TextInputs(source, ("input_ids",), min(longest, _LONG_PROMPT))

    def batches() -> Batches:
        found = [(f"prompt {index}", texts.feeds([SENTENCES[index]])) for index in (0, 2, 3, 11, 16)]
        rows = [texts.feeds([SENTENCES[index]])["input_ids"][0] for index in (13, 14, 17)]
        least = min(map(len, rows))
        found.append(("three rows", {"input_ids": np.stack([row[:least] for row in rows])}))
        return [*found, ("long prompt", shorter.feeds([LONG * 9]))]

    def golden(reference: Reference) -> list[GoldenCase]:
        cases = [
            golden_case(reference, texts, f"sentence {index + 1}", sentence) for index, sentence in enumerate(SENTENCES)
        ]
        cases += [golden_case(reference, texts, name, text) for name, text in probes(texts)]
        return [*cases, golden_case(reference, shorter, "truncated", LONG * 9)]

    axes = (Dim(symbol="batch", min=1), Dim(symbol="tokens", min=1, max=longest))
    return dataclasses.replace(
        base,
        specs=(TensorSpec("input_ids", "int64", axes),),
        example={"input_ids": torch.from_numpy(texts.feeds([SENTENCES[5]])["input_ids"]).repeat(2, 1)},
        batches=batches,
        golden=golden,
        lines=lambda lines: [(f"line {index}", texts.feeds([str(line)])) for index, line in enumerate(lines, start=1)],
        calibration=lambda path: base.calibration(path),
    )


def with_decoder(base: Inputs, source: Source, start: int, context: int) -> Inputs:
    """The inputs of an encoder, and ids that its decoder has said so far, of which `start` is the first."""

    def said(seed: int) -> list[int]:
        with quiet_transformers():
            text = " ".join(SENTENCES[(seed + place) % len(SENTENCES)] for place in range(3))
            ids = source.tokenizer(text, add_special_tokens=False)["input_ids"]
        padding = {source.tokenizer.pad_token_id, source.config.pad_token_id}
        ids = [token for token in ids if token not in padding]  # which a decoder says after its end alone
        return [start, *ids[: min(_SAID, context - 2)]]

    def more(feeds: Feeds, seed: int) -> Feeds:
        rows = len(next(iter(feeds.values())))
        sayings = [said(seed + row) for row in range(rows)]
        length = min(map(len, sayings))
        return {**feeds, DECODER_IDS: np.array([ids[:length] for ids in sayings], np.int64)}

    def batches(found: Batches) -> Batches:
        return [(name, more(feeds, seed)) for seed, (name, feeds) in enumerate(found)]

    def golden(reference: Reference) -> list[GoldenCase]:
        ids = said(0)
        saying = Saying(reference.model, reference.call, reference.outputs, tuple(ids))
        return [dataclasses.replace(case, continued=tuple(ids)) for case in base.golden(saying)]

    def write(root: Path) -> TokenizerSpec:
        """The decoder writes with a tokenizer, though what the encoder takes is no text."""
        found = base.write(root)
        if found is not None:
            return found
        spec = carry_tokenizer(source, root, ("input_ids",), context)
        check_tokenizer(source, root / spec.path, SENTENCES)
        prove_tokenizer(source, root / spec.path, spec)
        return spec

    tokens = TensorSpec(DECODER_IDS, "int64", (Dim(symbol="batch", min=1), Dim(symbol="tokens", min=1, max=context)))
    example = {name: value.numpy() for name, value in base.example.items()}
    return dataclasses.replace(
        base,
        specs=(*base.specs, tokens),
        example={name: torch.from_numpy(value) for name, value in more(example, 5).items()},
        batches=lambda: batches(base.batches()),
        golden=golden,
        lines=lambda lines: batches(base.lines(lines)),
        calibration=lambda path: [more(feeds, seed) for seed, feeds in enumerate(base.calibration(path))],
        write=write,
    )


@dataclasses.dataclass(frozen=True)
class Saying(Reference):
    """A reference whose decoder has said the same in every row."""

    ids: tuple[int, ...] = ()

    def run(self, feeds: Feeds, model: torch.nn.Module | None = None) -> Feeds:
        rows = len(next(iter(feeds.values())))
        return super().run({**feeds, DECODER_IDS: np.array([self.ids] * rows, np.int64)}, model)
