"""The reference: the eager, unpatched fp32 model, what it gives on realistic inputs, and its own noise floor."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..runtime.golden import Expected
from ..runtime.manifest import TensorSpec
from ..runtime.parity import Comparison, Noise
from ..runtime.verify import Case
from .capture import flat_tensors

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
    per_token = len(spec.dims) > 1 and spec.dims[1].symbol == "sequence" and output.shape[:2] == mask.shape
    return [row[mask[index] != 0] if per_token else row for index, row in enumerate(output)]
