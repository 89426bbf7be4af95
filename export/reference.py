"""The reference: the eager, unpatched fp32 model, what it gives on realistic inputs, and its own noise floor."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..runtime.golden import Expected, GoldenCase
from ..runtime.manifest import TensorSpec
from ..runtime.parity import Comparison, Noise
from ..runtime.verify import Case
from .capture import flat_tensors
from .source import Source, quiet_transformers
from .texts import CHOICES, LONG, PAIRS, PROBES, SENTENCES

Call = Callable[[torch.nn.Module, dict[str, torch.Tensor]], object]

# The noise floor needs a copy of the model in fp64; beyond this many parameters a perturbed run stands in for it.
_MOST_FOR_FP64 = 400_000_000
_MOST_FOR_ONE_THREAD = 200_000_000
# The noise floor is measured on cases of this many tokens in all; of pixels or samples, for models without text.
_NOISE_TOKENS = 1024
_NOISE_ELEMENTS = 1_000_000


@dataclass(frozen=True)
class Reference:
    """A model, how to call it, and what its outputs are called and which axis of each is which."""

    model: torch.nn.Module
    call: Call
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: dict[str, np.ndarray], model: torch.nn.Module | None = None) -> dict[str, np.ndarray]:
        """Outputs by name for named inputs, computed eagerly."""
        inputs = {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
        if model is not None:
            dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
            inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        with torch.no_grad(), _one_thread(self.model):
            results = flat_tensors(self.call(model if model is not None else self.model, inputs))
        return {spec.name: value.numpy() for spec, value in zip(self.outputs, results, strict=True)}

    def case(self, name: str, feeds: dict[str, np.ndarray], most: int | None = None) -> Case:
        """A case with the reference's outputs, each recorded whole, or sampled to `most` values."""
        outputs = self.run(feeds)
        expected = {
            spec.name: [Expected.of(row, most) for row in valid_reference_rows(outputs[spec.name], spec, feeds)]
            for spec in self.outputs
        }
        return Case(name, feeds, expected)

    def noise(self, cases: Sequence[Case]) -> dict[str, Noise]:
        """How far fp32 is from fp64 on these cases, by output: no other fp32 kernel can be held to less."""
        cases = _within_budget(cases)
        other = self.other_model(cases[0].feeds)
        comparisons = {spec.name: Comparison(spec.name) for spec in self.outputs}
        for case in cases:
            outputs = self.run(case.feeds, other)
            for spec in self.outputs:
                rows = valid_reference_rows(outputs[spec.name], spec, case.feeds)
                for expected, row in zip(case.expected[spec.name], rows, strict=True):
                    comparisons[spec.name].add(case.name, row.shape, expected.pick(row), expected.values)
        return {name: comparison.noise() for name, comparison in comparisons.items()}

    def other_model(self, feeds: dict[str, np.ndarray]) -> torch.nn.Module:
        """The model in fp64, or one whose weights are off by one rounding where fp64 is not to be had."""
        parameters = sum(p.numel() for p in self.model.parameters())
        if parameters <= _MOST_FOR_FP64:
            wide = copy.deepcopy(self.model).double()
            try:
                self.run(feeds, wide)
            except (RuntimeError, TypeError):  # models that make fp32 tensors in their code
                del wide
            else:
                return wide
        rounded = copy.deepcopy(self.model)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in rounded.parameters():
                if parameter.is_floating_point():
                    sign = torch.randint(0, 2, parameter.shape, generator=generator).to(parameter.dtype) * 2 - 1
                    parameter.mul_(1 + sign * 2.0**-23)
        return rounded


@contextlib.contextmanager
def _one_thread(model: torch.nn.Module) -> Iterator[None]:
    """Run small models on one thread: sums then do not depend on the machine's cores, and a busy machine costs no
    waiting at the end of every operation (a tiny model took 20 times as long on two busy cores)."""
    threads = torch.get_num_threads()
    if sum(p.numel() for p in model.parameters()) <= _MOST_FOR_ONE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _within_budget(cases: Sequence[Case]) -> list[Case]:
    """The smaller cases, up to a total size, and at least one: fp64 is slow, and a floor needs no thousand inputs."""
    budget = _NOISE_TOKENS if "input_ids" in cases[0].feeds else _NOISE_ELEMENTS
    chosen: list[Case] = []
    total = 0
    for case in sorted(cases, key=_size):
        total += _size(case)
        if chosen and total > budget:
            break
        chosen.append(case)
    return chosen


def _size(case: Case) -> int:
    return max(array.size for array in case.feeds.values())


def valid_reference_rows(output: np.ndarray, spec: TensorSpec, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Rows of a reference output without padded positions, as `runtime.verify.valid_rows` does for an artifact."""
    mask = feeds.get("attention_mask")
    if mask is None:
        return [output]
    per_token = len(spec.dims) > 1 and spec.dims[1].symbol == "sequence" and mask.ndim == 2
    return [row[mask[index] != 0] if per_token else row for index, row in enumerate(output)]


@dataclass(frozen=True)
class TextInputs:
    """Makes the model's inputs from text, with the checkpoint's own tokenizer."""

    source: Source
    names: tuple[str, ...]
    max_length: int
    prompt: str = ""

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        pad_to: int | None = None,
        offsets: bool = False,
    ) -> dict[str, Any]:
        """A padded batch: inputs by name, (N, S) int64; with `offsets` also `offset_mapping`."""
        texts = [self.prompt + text for text in texts]
        with quiet_transformers():
            encoded = self.source.tokenizer(
                texts,
                list(pairs) if pairs is not None else None,
                truncation=self.truncation(pairs is not None),
                max_length=pad_to or self.max_length,
                padding="max_length" if pad_to else True,
                return_offsets_mapping=offsets,
                return_attention_mask=True,
                return_token_type_ids="token_type_ids" in self.names,
                return_tensors="np",
            )
        wanted = (*self.names, "attention_mask", *(("offset_mapping",) if offsets else ()))
        return {name: np.asarray(encoded[name], np.int64) for name in wanted if name in encoded}

    def truncation(self, pair: bool) -> str:
        """Where tokens are cut: a question is kept whole, its passage is not."""
        return "only_second" if pair and self.source.task.name == "question-answering" else "longest_first"

    def feeds(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, pad_to: int | None = None
    ) -> dict[str, Any]:
        """A batch as the model takes it; multiple choice: one row of choices per call."""
        encoded = self.encode(texts, pairs, pad_to=pad_to)
        arrays = {name: encoded[name] for name in self.names}
        return {name: array[None] for name, array in arrays.items()} if self.source.task.rank == 3 else arrays


def text_cases(reference: Reference, inputs: TextInputs) -> list[Case]:
    """Batches of several languages, lengths and paddings; none is what the model was captured with."""
    task = inputs.source.task
    batches: list[tuple[str, list[str], list[str] | None]] = []
    if task.rank == 3:
        batches = [
            (f"choices {i}", [prompt] * len(choices), list(choices)) for i, (prompt, choices) in enumerate(CHOICES)
        ]
        prompt, choices = CHOICES[0]
        batches.append(("long choices", [LONG + prompt] * 2, list(choices[:2])))
    elif task.name == "question-answering":
        questions, passages = zip(*PAIRS, strict=True)
        batches = [(f"pair {i}", [q], [p]) for i, (q, p) in enumerate(PAIRS)]
        batches += [("batch of pairs", list(questions), list(passages)), ("long passage", [questions[3]], [LONG * 9])]
    else:
        sentences = [_masked(inputs, sentence) for sentence in SENTENCES]
        batches = [(f"sentence {i}", [sentences[i]], None) for i in (0, 1, 3, 11)]
        batches += [
            ("batch of 5", sentences[:5], None),
            ("batch of 8, mixed", sentences[8:16], None),
            ("long and short", [LONG, "ok"], None),
            ("truncated", [LONG * 9], None),
        ]
        if task.name != "fill-mask":
            batches.append(("batch of pairs", [first for first, _ in PAIRS], [second for _, second in PAIRS]))
    return [reference.case(name, inputs.feeds(texts, pairs)) for name, texts, pairs in batches]


def file_cases(reference: Reference, inputs: TextInputs, texts: Sequence[str | tuple[str, str]]) -> list[Case]:
    """The user's own texts, or pairs of texts, in small batches of mixed length."""
    cases = []
    size = 1 if inputs.source.task.rank == 3 else 8
    for start in range(0, len(texts), size):
        chunk = texts[start : start + size]
        pairs = [entry[1] for entry in chunk if not isinstance(entry, str)]
        firsts = [entry if isinstance(entry, str) else entry[0] for entry in chunk]
        feeds = inputs.feeds(firsts, pairs if len(pairs) == len(firsts) else None)
        cases.append(reference.case(f"lines {start + 1}-{start + len(chunk)}", feeds))
    return cases


def golden_vectors(reference: Reference, inputs: TextInputs) -> list[GoldenCase]:
    """The bundle's golden vectors: sentences, pairs, what breaks tokenizers, truncation and padding."""
    task = inputs.source.task
    cases: list[GoldenCase] = []
    if task.rank == 3:
        for index, (prompt, choices) in enumerate(CHOICES):
            cases.append(_golden(reference, inputs, f"choices {index + 1}", prompt, choices=choices))
        return cases
    if task.name == "question-answering":
        for index, (question, passage) in enumerate(PAIRS):
            cases.append(_golden(reference, inputs, f"pair {index + 1}", question, passage))
        cases.append(_golden(reference, inputs, "truncated pair", PAIRS[3][0], LONG * 9))
        cases += [_golden(reference, inputs, name, PAIRS[0][0], text + " end") for name, text in PROBES]
        return cases
    for index, sentence in enumerate(SENTENCES):
        cases.append(_golden(reference, inputs, f"sentence {index + 1}", _masked(inputs, sentence)))
    cases += [_golden(reference, inputs, name, text) for name, text in PROBES]
    for index, (first, second) in enumerate(PAIRS):
        cases.append(_golden(reference, inputs, f"pair {index + 1}", first, second))
    cases.append(_golden(reference, inputs, "truncated", LONG * 9))
    padded = min(32, inputs.max_length)
    cases.append(_golden(reference, inputs, f"padded to {padded}", _masked(inputs, SENTENCES[0]), pad_to=padded))
    return cases


def _golden(
    reference: Reference,
    inputs: TextInputs,
    name: str,
    text: str,
    pair: str | None = None,
    choices: Sequence[str] | None = None,
    pad_to: int | None = None,
) -> GoldenCase:
    firsts = [text] * (len(choices) if choices else 1)
    seconds = list(choices) if choices else [pair] if pair is not None else None
    encoded = inputs.encode(firsts, seconds, pad_to=pad_to, offsets=True)
    offsets = encoded.pop("offset_mapping")
    case = reference.case(name, inputs.feeds(firsts, seconds, pad_to=pad_to), most=512)
    keep = slice(None) if choices else 0
    options: dict[str, Any] = {
        "max_length": pad_to or inputs.max_length,
        "truncation": inputs.truncation(seconds is not None),
    }
    if pad_to:
        options["pad_to"] = pad_to
    return GoldenCase(
        name=name,
        encoding={key: encoded[key][keep] for key in inputs.names},
        outputs={key: rows[0] for key, rows in case.expected.items()},
        text=text,
        text_pair=pair,
        choices=tuple(choices) if choices else None,
        options=options,
        offsets=offsets[keep].tolist(),
    )


def _masked(inputs: TextInputs, sentence: str) -> str:
    """For fill-mask: the sentence with its second word masked."""
    mask = inputs.source.tokenizer.mask_token
    if inputs.source.task.name != "fill-mask" or mask is None:
        return sentence
    words = sentence.split(" ")
    if len(words) > 1:
        words[1] = mask
        return " ".join(words)
    return f"{sentence} {mask}"
