"""The reference: the eager, unpatched fp32 model, what it gives on realistic inputs, and its own noise floor."""

from __future__ import annotations

import contextlib
import copy
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..runtime.errors import DamagedError
from ..runtime.golden import Expected
from ..runtime.manifest import TensorSpec
from ..runtime.parity import Comparison, Noise
from ..runtime.verify import Case
from .capture import flat_tensors
from .running import running

Call = Callable[[torch.nn.Module, dict[str, torch.Tensor]], object]

# The noise floor needs the model in fp64; beyond this many parameters a perturbed run stands in for it.
_MOST_FOR_FP64 = 400_000_000
# Beyond this many no copy of all weights is made: each module's are changed while it runs.
_MOST_FOR_COPY = 50_000_000
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
        """Outputs by name for named inputs, computed eagerly. Raises NotRun when the model does not run on them."""
        inputs = {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
        if model is not None:
            dtype = getattr(model, _COMPUTES, None) or next(
                (p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32
            )
            inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        watched = running(self.model, feeds) if model is None else contextlib.nullcontext()
        with torch.no_grad(), _one_thread(self.model), watched:
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
            wide = copy.deepcopy(self.model).double() if parameters <= _MOST_FOR_COPY else self._changed(_widened)
            try:
                self.run(feeds, wide)
            except (RuntimeError, TypeError):  # models that make fp32 tensors in their code
                del wide
            else:
                return wide
        return self._changed(_nudged)

    def _changed(self, change: Change) -> torch.nn.Module:
        """The model with other weights, which a module has while it runs: there is never a copy of all of them."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        other = copy.deepcopy(self.model, {id(tensor): tensor for tensor in tensors})
        if change is _widened:
            setattr(other, _COMPUTES, torch.float64)
        for path, module in other.named_modules():
            if module._parameters or module._buffers:
                _change_while_running(module, path, change)
        return other


# The dtype that a model computes in whose parameters do not tell.
_COMPUTES = "palmtop_computes"
# How many values are changed at once.
_CHUNK = 1 << 22

# A tensor's name, itself, and whether it is a parameter, to what a module shall compute with.
Change = Callable[[str, torch.Tensor, bool], torch.Tensor]


def _widened(name: str, value: torch.Tensor, parameter: bool) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value


def _nudged(name: str, value: torch.Tensor, parameter: bool) -> torch.Tensor:
    """Each weight off by one rounding, up or down as its name decides."""
    if not parameter or not value.is_floating_point():
        return value
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    changed = value.clone(memory_format=torch.contiguous_format)
    for part in changed.view(-1).split(_CHUNK):
        up = torch.randint(0, 2, part.shape, generator=generator, dtype=torch.int8)
        part.mul_(1 + (up * 2 - 1).to(part.dtype) * 2.0**-23)
    return changed


Kept = list[tuple[dict[str, torch.Tensor | None], str, torch.Tensor]]


def _exchange(module: torch.nn.Module, path: str, change: Change) -> Kept:
    """Give a module other weights; gives the old ones, and where they were."""
    kept: Kept = []
    for store in (module._parameters, module._buffers):
        parameter = store is module._parameters
        for name, value in store.items():
            if value is None:
                continue
            changed = change(f"{path}.{name}", value.detach(), parameter)
            kept.append((store, name, value))
            store[name] = torch.nn.Parameter(changed, requires_grad=False) if parameter else changed
    return kept


def _change_while_running(module: torch.nn.Module, path: str, change: Change) -> None:
    kept: Kept = []
    depth = 0

    def before(*_: object) -> None:
        nonlocal depth
        if depth == 0:  # what calls itself has them already
            kept.extend(_exchange(module, path, change))
        depth += 1

    def after(*_: object) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            for store, name, value in kept:
                store[name] = value
            kept.clear()

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, always_call=True)


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


def refuse_no_numbers(cases: Sequence[Case], outputs: Sequence[TensorSpec], name: str) -> None:
    """Raises DamagedError when a model gives NaN or infinity alone for an output: nothing could be compared."""
    for spec in outputs:
        values = [expected.values for case in cases for expected in case.expected[spec.name] if expected.values.size]
        if values and not any(np.isfinite(array).any() for array in values):
            raise DamagedError(
                f"{name} itself, in PyTorch and fp32, gives no finite number as {spec.name} for any of {len(cases)} "
                "inputs: its weights are damaged. Remedy: an earlier checkpoint; training may have diverged."
            )


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
    """Rows of a reference output without padded positions, as `runtime.fitting.valid_rows` does for an artifact."""
    mask = feeds.get("attention_mask")
    if mask is None:
        return [output]
    per_token = len(spec.dims) > 1 and spec.dims[1].symbol == "sequence" and output.shape[:2] == mask.shape
    return [row[mask[index] != 0] if per_token else row for index, row in enumerate(output)]
