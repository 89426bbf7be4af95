"""Quantization of a captured model: which weights, by which plan, from what calibration data."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from ..quantize.calibrate import ROOM, Statistics, calibrate, hessians
from ..quantize.execute import Execution
from ..quantize.program import store
from ..quantize.scheme import Plan, Preset, Scheme
from ..quantize.search import Rung, Table
from ..quantize.sites import Site, find_sites, layer_input
from ..quantize.smooth import divide, divisions, smooth
from ..quantize.weights import QuantizedWeight, fitting, quantize
from ..runtime.errors import RequestError
from .capture import Captured
from .modules import user_path

Feeds = dict[str, np.ndarray]
Advance = Callable[[], None]

# More tokens than these change what is found by less than another choice of texts would. Large models are calibrated on
# fewer, down to the second number: so many products of a weight and an input are what a few minutes have room for.
_MOST_TOKENS, _FEWEST_TOKENS, _PRODUCTS = 32768, 4096, 1e12
# What sensitivities are measured on: the order of weights is clear long before their exact numbers.
_SENSITIVITY_TOKENS, _SENSITIVITY_FEWEST, _SENSITIVITY_PRODUCTS = 768, 256, 2e10
_SENSITIVITY_ROWS = 4
# Tokens, or numbers of another input, that make a batch of short inputs.
_AT_ONCE = 512


def preset_plan(captured: Captured, preset: Preset) -> Plan:
    """The plan that a preset makes for this model."""
    sites = find_sites(captured.program)
    return Plan({user_path(site.name): preset_scheme(site, preset) for site in sites}, preset.smoothing)


def preset_scheme(site: Site, preset: Preset) -> Scheme:
    """The scheme that a preset has for a weight.

    A vocabulary that is table and head gets that of layers where these round their inputs: multiplied otherwise, it
    takes longer than the rest of a small language model together.
    """
    if site.tied and preset.layer.activations == "dynamic":
        return preset.layer
    return {"embedding": preset.embedding, "linear": preset.layer, "convolution": preset.convolution}[site.kind]


def check_plan(captured: Captured, plan: Plan) -> None:
    """Refuse a plan for weights that the model does not have. Raises RequestError, naming what comes close."""
    known = {user_path(site.name) for site in find_sites(captured.program)}
    for name in plan.weights:
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.3)) or "none"
            raise RequestError(f"The plan names {name}, no weight of this model that can be quantized. Close: {close}.")


def calibration_rows(captured: Captured, batches: Iterable[Feeds]) -> list[Feeds]:
    """What a model is calibrated with, of inputs that there are."""
    return single_rows(batches, _affordable(captured, _MOST_TOKENS, _FEWEST_TOKENS, _PRODUCTS))


def sensitivity_rows(captured: Captured, rows: Sequence[Feeds]) -> list[Feeds]:
    """What sensitivities are measured on, in batches: of calibration inputs some of the lengths that most have."""
    most = _affordable(captured, _SENSITIVITY_TOKENS, _SENSITIVITY_FEWEST, _SENSITIVITY_PRODUCTS)
    groups: dict[tuple[tuple[int, ...], ...], list[Feeds]] = {}
    for row in rows:
        groups.setdefault(tuple(array.shape for array in row.values()), []).append(row)
    chosen: list[Feeds] = []
    tokens = 0
    for group in sorted(groups.values(), key=len, reverse=True):
        size = max(array.size for array in group[0].values())
        # Of three lengths at least; of inputs as large as pictures, a few all the same.
        count = min(len(group), max(most // (3 * size), _SENSITIVITY_ROWS - len(chosen), 1))
        chosen += group[:count]
        tokens += count * size
        if tokens >= most and len(chosen) >= _SENSITIVITY_ROWS:
            break
    return list(_together(captured, chosen, None))


def _affordable(captured: Captured, most: int, fewest: int, products: float) -> int:
    weights = sum(site.size for site in find_sites(captured.program) if site.kind != "embedding")
    return int(min(most, max(fewest, products / max(weights, 1))))


def observe(
    captured: Captured, feeds: Iterable[Feeds], progress: Advance | None = None, *, room: int = ROOM
) -> dict[str, Statistics]:
    """What flows into the model's layers on these inputs, by activation; Hessians of the first that have room."""
    sites = find_sites(captured.program)
    return calibrate(captured.program, sites, _together(captured, feeds, progress), room=room)


def _together(captured: Captured, feeds: Iterable[Feeds], progress: Advance | None) -> Iterator[Feeds]:
    """Inputs of one shape in one batch where the model takes batches: many small products take far longer."""
    batch = captured.symbols.get("batch")
    joins = batch is not None and all(spec.dims and spec.dims[0].symbol == "batch" for spec in captured.inputs)
    groups: dict[tuple[tuple[int, ...], ...], list[Feeds]] = {}
    for feed in feeds:
        groups.setdefault(tuple(feed[spec.name].shape for spec in captured.inputs), []).append(feed)
    for shapes, group in groups.items():
        rows = max(_AT_ONCE // max(math.prod(shape) for shape in shapes), 1) if joins else 1
        if batch is not None and batch.largest is not None:
            rows = min(rows, max(batch.largest // shapes[0][0], 1))
        for start in range(0, len(group), rows):
            part = group[start : start + rows]
            yield (
                {name: np.concatenate([feed[name] for feed in part]) for name in part[0]} if len(part) > 1 else part[0]
            )
            for _ in part:
                if progress is not None:
                    progress()


def quantized(captured: Captured, plan: Plan, statistics: Mapping[str, Statistics]) -> Captured:
    """The captured model with a plan applied: the same interface, other weights, and their integers."""
    return Quantizer(captured, statistics, plan.smoothing, plan.rounding).apply(plan.weights)


def carried(quantized: Captured, other: Captured) -> Captured:
    """Another capture of the same model with the weights, and their integers, of one that a plan was applied to."""
    if other.method == quantized.method:
        return quantized
    program = other.private_program()
    values = quantized.program.state_dict
    program._state_dict = {name: values.get(name, value) for name, value in program.state_dict.items()}
    divide(program, divisions(quantized.program))
    integers = {name: made for name, made in quantized.quantized.items() if name in program.state_dict}
    return dataclasses.replace(other, program=program, quantized=integers, _specialized={})


class Quantizer:
    """Applies plans to one model. Each weight is rounded once for each scheme that any plan gives it.

    feeds: calibration inputs, for Hessians that had no room among the statistics: they are gathered when they are
    needed, in place of earlier ones, for as many layers as have `room`. Without inputs those layers are rounded to the
    nearest.
    """

    def __init__(
        self,
        captured: Captured,
        statistics: Mapping[str, Statistics],
        smoothing: float | None = None,
        rounding: str = "gptq",
        feeds: Sequence[Feeds] = (),
        room: int = ROOM,
    ):
        program = captured.private_program()
        program._state_dict = dict(program.state_dict)
        sites = find_sites(program)
        self.statistics = dict(statistics) if smoothing is None else smooth(program, sites, statistics, smoothing)
        self.captured = dataclasses.replace(captured, program=program, quantized={}, _specialized={})
        self.sites = {user_path(site.name): site for site in sites}
        self.smoothing, self.rounding = smoothing, rounding
        self._nodes = {node.name: node for node in program.graph.nodes}
        self._feeds, self._room = feeds, room
        self._weights: dict[tuple[str, Scheme], QuantizedWeight] = {}

    def weight(self, path: str, scheme: Scheme) -> QuantizedWeight:
        """The integers of a weight in a scheme."""
        site = self.sites[path]
        scheme = fitting(scheme, site.columns)
        if (path, scheme) not in self._weights:
            value = self.captured.program.state_dict[site.name]
            hessian = self._hessian(site) if self.rounding == "gptq" else None
            made = quantize(site.as_matrix(value), scheme, tuple(value.shape), site.transposed, hessian)
            self._weights[path, scheme] = made
        return self._weights[path, scheme]

    def apply(self, weights: Mapping[str, Scheme], progress: Advance | None = None) -> Captured:
        """The model with a plan's weights."""
        program = self.captured.private_program()
        program._state_dict = dict(program.state_dict)
        made = {}
        for path, scheme in weights.items():
            site = self.sites[path]
            made[site.name] = self.weight(path, scheme)
            store(program, site.name, made[site.name].dequantize().to(program.state_dict[site.name].dtype))
            if progress is not None:
                progress()
        return dataclasses.replace(self.captured, program=program, quantized=made, _specialized={})

    def table(
        self, ladders: Mapping[str, Sequence[Scheme | None]], feeds: Sequence[Feeds], progress: Advance | None = None
    ) -> Table:
        """What each rung of each weight's ladder costs, alone, on these inputs (see `quantize.search`).

        What comes before a weight is computed once for all its rungs.

        Args:
            progress: called for each rung but the last, on each input.
        """
        place = {node: number for number, node in enumerate(self._nodes.values())}
        first = {
            path: min((self._nodes[use.node] for use in self.sites[path].uses), key=place.__getitem__)
            for path in ladders
        }
        costs: dict[tuple[str, Scheme], Disagreement] = {}
        for feed in feeds:
            execution = Execution(self.captured.program, feed)
            expected = execution.finish()
            for path in sorted(ladders, key=lambda path: place[first[path]]):
                execution.advance(first[path])
                weight = self._nodes[self.sites[path].placeholder]
                for scheme in ladders[path]:
                    if scheme is not None:
                        actual = execution.finish(instead={weight: self.weight(path, scheme).dequantize()})
                        costs.setdefault((path, scheme), Disagreement()).add(expected, actual)
                        if progress is not None:
                            progress()

        def rung(path: str, scheme: Scheme | None) -> Rung:
            if scheme is None:
                return Rung(None, 4 * self.sites[path].size, 0.0)
            return Rung(scheme, self.weight(path, scheme).bytes, costs[path, scheme].value)

        return Table({path: [rung(path, scheme) for scheme in ladder] for path, ladder in ladders.items()})

    def _hessian(self, site: Site) -> torch.Tensor | None:
        """Of a layer's inputs, all its uses together; None for tables, convolutions, and where nothing was seen."""
        total = None
        for use in site.uses:
            if use.kind != "linear":
                return None
            name = layer_input(self._nodes[use.node]).name
            seen = self.statistics.get(name)
            if seen is not None and seen.hessian is None and self._feeds:
                seen = self._gathered(name)
            if seen is None or not seen.rows or seen.hessian is None:
                return None
            total = seen.hessian if total is None else total + seen.hessian
        return total

    def _gathered(self, name: str) -> Statistics:
        """The statistics of an activation with its Hessian, in place of all Hessians that there are."""
        self.statistics = {key: dataclasses.replace(seen, hessian=None) for key, seen in self.statistics.items()}
        feeds = _together(self.captured, self._feeds, None)
        program = self.captured.program
        self.statistics |= hessians(program, list(self.sites.values()), feeds, name, room=self._room)
        return self.statistics[name]


class Disagreement:
    """1 minus the mean cosine of rows (along the last axis), of the output where that is largest."""

    def __init__(self) -> None:
        self._totals: list[tuple[float, int]] = []

    def add(self, expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor]) -> None:
        """The outputs for one input."""
        self._totals = self._totals or [(0.0, 0)] * len(expected)
        for place, (wanted, given) in enumerate(zip(expected, actual, strict=True)):
            rows = torch.nn.functional.cosine_similarity(wanted.double(), given.double(), dim=-1)
            total, count = self._totals[place]
            self._totals[place] = total + float((1 - torch.nan_to_num(rows, nan=0.0)).sum()), count + rows.numel()

    @property
    def value(self) -> float:
        return max(total / max(count, 1) for total, count in self._totals)


def single_rows(batches: Iterable[Feeds], most: int = _MOST_TOKENS) -> list[Feeds]:
    """Rows of batches, one at a time, without their padding; of more than so many tokens some from all over them."""
    rows: list[Feeds] = []
    tokens = 0
    for feeds in batches:
        mask = feeds.get("attention_mask")
        if mask is None or mask.ndim != 2:
            rows.append(feeds)
            continue
        for row, kept in enumerate(mask.astype(bool)):
            rows.append(
                {
                    name: array[row : row + 1][:, kept] if array.shape[:2] == mask.shape else array[row : row + 1]
                    for name, array in feeds.items()
                }
            )
            tokens += int(kept.sum())
    count = math.ceil(len(rows) * most / tokens) if tokens > most else len(rows)
    return [rows[place * len(rows) // count] for place in range(count)]
