"""Static activations for Core ML: the ranges of what layers read, found by running the model without rounding them.

coremltools calibrates by `MLModel.predict`, which needs a Mac. Here palmtop's own interpreter runs a first package, in
which weights are integers already and inputs of layers are left alone; the ranges it finds go into the artifact, and
`lower` writes the second package by them. They are the least and greatest number seen: narrower ones, with the least
squared error, clip the few large numbers that Transformers carry from layer to layer (docs/decisions.md).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from ...quantize.weights import QuantizedWeight
from ...runtime.errors import RequestError
from ...runtime.manifest import Artifact
from ...runtime.mil.ranges import activation_ranges
from ..capture import Captured
from ..modules import user_path
from . import Options
from .coreml import lower, plan
from .coreml_schemes import parameter_of, value_names


def needs_ranges(captured: Captured) -> bool:
    """Whether a plan has layers whose inputs are rounded by a fixed range."""
    return any(weight.scheme.activations == "static" for weight in captured.quantized.values())


def calibrated(
    captured: Captured,
    artifact: Artifact,
    feeds: Iterable[Mapping[str, np.ndarray]],
    progress: Callable[[], None] | None = None,
) -> Artifact:
    """The artifact with `quantization["input_ranges"]`: parameter, as the user's model names it -> [least, greatest].

    Args:
        captured: with a plan applied.
        feeds: inputs of one row each, of any length that the model takes, without padding.

    Raises:
        RequestError: no inputs, NaN in or from them, or a layer that they never reach.
    """
    if not needs_ranges(captured):
        return artifact
    names = value_names(captured.quantized)
    plain = {name: _without_rounding(weight) for name, weight in captured.quantized.items()}
    unrounded = dataclasses.replace(captured, quantized=plain)
    free = plan(unrounded, Options(precision=artifact.precision))  # of any length, whatever the artifact takes
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "calibration.mlpackage"
        lower(unrounded, dataclasses.replace(artifact, inputs=free.inputs, outputs=free.outputs), "", package)
        seen = activation_ranges(package, feeds, progress)
    ranges: dict[str, list[float]] = {}
    for value, (low, high) in sorted(seen.items()):
        parameter = parameter_of(value, names)
        if parameter is not None and captured.quantized[parameter].scheme.activations == "static":
            before = ranges.get(user_path(parameter), [low, high])
            ranges[user_path(parameter)] = [min(low, before[0]), max(high, before[1])]
    missing = [
        name
        for name, weight in captured.quantized.items()
        if weight.scheme.activations == "static" and user_path(name) not in ranges
    ]
    if missing:
        raise RequestError(
            f"{user_path(missing[0])}: no input of a layer with this weight was seen in calibration, so it cannot have "
            "static activations. The nearest scheme: int8 per channel without activations."
        )
    return dataclasses.replace(artifact, quantization={**(artifact.quantization or {}), "input_ranges": ranges})


def _without_rounding(weight: QuantizedWeight) -> QuantizedWeight:
    return dataclasses.replace(weight, scheme=dataclasses.replace(weight.scheme, activations="none"))
