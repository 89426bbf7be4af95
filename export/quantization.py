"""Quantization of a captured model: which weights, by which plan, from what calibration data."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from ..quantize.calibrate import Statistics, calibrate, run
from ..quantize.program import store
from ..quantize.scheme import Plan, Preset, Scheme
from ..quantize.search import Rung, Table
from ..quantize.sites import Site, find_sites, layer_input
from ..quantize.smooth import smooth
from ..quantize.weights import QuantizedWeight, fitting, quantize
from ..runtime.errors import RequestError
from .capture import Captured
from .modules import user_path

Feeds = dict[str, np.ndarray]
Advance = Callable[[], None]

# More tokens than these change what is found by less than another choice of texts would.
_MOST_TOKENS = 32768
# Tokens, or numbers of another input, that make a batch of short inputs.
_AT_ONCE = 512


def preset_plan(captured: Captured, preset: Preset) -> Plan:
    """The plan that a preset makes for this model."""
    schemes = {"embedding": preset.embedding, "linear": preset.layer, "convolution": preset.convolution}
    sites = find_sites(captured.program)
    return Plan({user_path(site.name): schemes[site.kind] for site in sites}, preset.smoothing)


def check_plan(captured: Captured, plan: Plan) -> None:
    """Refuse a plan for weights that the model does not have. Raises RequestError, naming what comes close."""
    known = {user_path(site.name) for site in find_sites(captured.program)}
    for name in plan.weights:
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.3)) or "none"
            raise RequestError(f"The plan names {name}, no weight of this model that can be quantized. Close: {close}.")


def observe(captured: Captured, feeds: Iterable[Feeds], progress: Advance | None = None) -> dict[str, Statistics]:
    """What flows into the model's layers on these inputs, by activation."""
    return calibrate(captured.program, find_sites(captured.program), _together(captured, feeds, progress))


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


class Quantizer:
    """Applies plans to one model. Each weight is rounded once for each scheme that any plan gives it."""

    def __init__(
        self,
        captured: Captured,
        statistics: Mapping[str, Statistics],
        smoothing: float | None = None,
        rounding: str = "gptq",
    ):
        program = captured.private_program()
        program._state_dict = dict(program.state_dict)
        sites = find_sites(program)
        self.statistics = dict(statistics) if smoothing is None else smooth(program, sites, statistics, smoothing)
        self.captured = dataclasses.replace(captured, program=program, quantized={}, _specialized={})
        self.sites = {user_path(site.name): site for site in sites}
        self.smoothing, self.rounding = smoothing, rounding
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
        """What each rung of each weight's ladder costs, alone, on these inputs (see `quantize.search`)."""
        program = self.captured.program
        expected = [run(program, feed) for feed in feeds]
        rungs = {}
        for path, ladder in ladders.items():
            site = self.sites[path]
            found = []
            for scheme in ladder:
                if scheme is None:
                    found.append(Rung(None, 4 * site.size, 0.0))
                    continue
                made = self.weight(path, scheme)
                other = {site.name: made.dequantize()}
                cost = disagreement(expected, [run(program, feed, instead=other) for feed in feeds])
                found.append(Rung(scheme, made.bytes, cost))
                if progress is not None:
                    progress()
            rungs[path] = found
        return Table(rungs)

    def _hessian(self, site: Site) -> torch.Tensor | None:
        """Of a layer's inputs, all its uses together; None for tables, convolutions, and where nothing was seen."""
        nodes = {node.name: node for node in self.captured.program.graph.nodes}
        total = None
        for use in site.uses:
            seen = self.statistics.get(layer_input(nodes[use.node]).name) if use.kind == "linear" else None
            if seen is None or not seen.rows:
                return None
            total = seen.hessian if total is None else total + seen.hessian
        return total


def disagreement(expected: Sequence[Sequence[torch.Tensor]], actual: Sequence[Sequence[torch.Tensor]]) -> float:
    """1 minus the mean cosine of rows (along the last axis), of the output where that is largest."""
    totals = [[0.0, 0] for _ in expected[0]]
    for one, other in zip(expected, actual, strict=True):
        for place, (wanted, given) in enumerate(zip(one, other, strict=True)):
            rows = torch.nn.functional.cosine_similarity(wanted.double(), given.double(), dim=-1)
            rows = torch.nan_to_num(rows, nan=0.0)
            totals[place][0] += float((1 - rows).sum())
            totals[place][1] += rows.numel()
    return max(total / max(count, 1) for total, count in totals)


def single_rows(batches: Iterable[Feeds], most: int = _MOST_TOKENS) -> Iterator[Feeds]:
    """Rows of batches, one at a time, without their padding, up to a number of tokens that is enough."""
    tokens = 0
    for feeds in batches:
        mask = feeds.get("attention_mask")
        if mask is None or mask.ndim != 2:
            yield feeds
            continue
        for row, kept in enumerate(mask.astype(bool)):
            yield {
                name: array[row : row + 1][:, kept] if array.shape[:2] == mask.shape else array[row : row + 1]
                for name, array in feeds.items()
            }
            tokens += int(kept.sum())
            if tokens > most:
                return


def weights_bytes(captured: Captured) -> int:
    """About how large an artifact is: integers where a plan put some, fp32 elsewhere."""
    total = 0
    for name, value in captured.program.state_dict.items():
        if name in captured.quantized:
            total += captured.quantized[name].bytes
        elif isinstance(value, torch.Tensor):
            total += value.numel() * value.element_size()
    return total
