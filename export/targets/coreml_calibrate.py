"""Static activations for Core ML: the ranges of what layers read, found by running the model without rounding them.

coremltools calibrates by `MLModel.predict`, which needs a Mac. Here palmtop's own interpreter runs a first package, in
which weights are integers already and inputs of layers are left alone; the ranges it finds go into the artifact, and
`lower` writes the second package by them.
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
from .coreml import lower
from .coreml_schemes import parameter_of, value_names

RANGES = "input_ranges"


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
        captured: with a plan applied. feeds: inputs that the artifact takes (one row each, no padding).

    Raises:
        RequestError: no inputs, NaN in or from them, or a layer that they never reach.
    """
    if not needs_ranges(captured):
        return artifact
    names = value_names(captured.quantized)
    plain = {name: _without_rounding(weight) for name, weight in captured.quantized.items()}
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "calibration.mlpackage"
        lower(dataclasses.replace(captured, quantized=plain), artifact, "", package)
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
    return dataclasses.replace(artifact, quantization={**(artifact.quantization or {}), RANGES: ranges})


def _without_rounding(weight: QuantizedWeight) -> QuantizedWeight:
    return dataclasses.replace(weight, scheme=dataclasses.replace(weight.scheme, activations="none"))
