"""Quantization of a captured model: which weights, by which plan, from what calibration data."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from ..quantize.apply import apply
from ..quantize.calibrate import Statistics, calibrate
from ..quantize.scheme import Plan, Preset, Scheme
from ..quantize.sites import Site, find_sites
from ..runtime.errors import RequestError
from .capture import Captured
from .modules import user_path

Feeds = dict[str, np.ndarray]

# More tokens than these change what is found by less than another choice of texts would.
_MOST_TOKENS = 16384


def preset_plan(captured: Captured, preset: Preset) -> Plan:
    """The plan that a preset makes for this model."""
    schemes = {"embedding": preset.embedding, "linear": preset.layer, "convolution": preset.convolution}
    return Plan({user_path(site.name): schemes[site.kind] for site in find_sites(captured.program)}, preset.smoothing)


def sites_by_path(captured: Captured) -> dict[str, Site]:
    """What can be quantized, by the name that the user's model has for the parameter."""
    return {user_path(site.name): site for site in find_sites(captured.program)}


def check_plan(captured: Captured, plan: Plan) -> None:
    """Refuse a plan for weights that the model does not have. Raises RequestError, naming what comes close."""
    known = sites_by_path(captured)
    for name in plan.weights:
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.3)) or "none"
            raise RequestError(f"The plan names {name}, no weight of this model that can be quantized. Close: {close}.")


def observe(
    captured: Captured, feeds: Iterable[Feeds], progress: Callable[[], None] | None = None
) -> dict[str, Statistics]:
    """What flows into the model's layers on these inputs, by activation."""
    return calibrate(captured.program, find_sites(captured.program), feeds, progress)


def quantized(
    captured: Captured,
    plan: Plan,
    statistics: Mapping[str, Statistics],
    progress: Callable[[], None] | None = None,
) -> Captured:
    """The captured model with a plan applied: the same interface, other weights, and their integers."""
    program = captured.private_program()
    program._state_dict = dict(program.state_dict)
    sites = find_sites(program)
    schemes: dict[str, Scheme] = {
        site.name: plan.weights[user_path(site.name)] for site in sites if user_path(site.name) in plan.weights
    }
    weights = apply(
        program,
        sites,
        schemes,
        statistics=statistics,
        smoothing=plan.smoothing,
        gptq=plan.rounding == "gptq",
        progress=progress,
    )
    return dataclasses.replace(captured, program=program, quantized=weights, _specialized={})


def single_rows(batches: Sequence[Feeds]) -> Iterator[Feeds]:
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
            if tokens > _MOST_TOKENS:
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
