"""Layer by layer, how far an artifact is from what it should be, and the first operation at which they part ways.

What it should be is the eager model (`palmtop.export.explain`, which needs torch), or for an fp16 program that can be
executed without rounding, that: `rounding_layers` of its backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .parity import Measure


@dataclass(frozen=True)
class Layer:
    """One PyTorch module (or, with `kind` "output", an output of the artifact) and the artifact's value for it.

    `operation` and `type` name what computes the value inside the artifact; `kind` is the module's class where it is
    known. `note` says what else a reader should know: that another module is merged into this one, say.
    """

    module: str
    kind: str
    operation: str
    type: str
    measure: Measure
    note: str = ""

    @property
    def exceeds(self) -> bool:
        """Farther away than its precision explains."""
        return self.measure.cases > 0 and not self.measure.passed

    def to_json(self) -> dict[str, Any]:
        return {
            "module": self.module,
            "kind": self.kind,
            "operation": self.operation,
            "type": self.type,
            "note": self.note,
            **{
                key: value
                for key, value in self.measure.to_json().items()
                if key in ("max_error", "rms_error", "cosine", "nonfinite", "bound", "passed")
            },
        }


@dataclass(frozen=True)
class Explanation:
    """The layers of one artifact in order of execution, on one case.

    `against`: what it was compared with. `how`: how its inner values were had. `unmatched`: modules without a value of
    their own in the artifact. `first`: where they part ways, None when the outputs are as expected.
    """

    target: str
    path: str
    case: str
    against: str
    how: str
    layers: tuple[Layer, ...]
    first: Layer | None
    unmatched: tuple[str, ...] = ()

    def verdict(self) -> str:
        """Where they part ways, in one line."""
        beyond = sum(layer.exceeds for layer in self.layers)
        if self.first is None:
            inside = f" ({beyond} modules differ by more than expected, and no output does)" if beyond else ""
            return f"{self.path} and {self.against} do not part ways{inside}."
        where = self.first.module or "the model itself"
        error = "it is NaN or infinite" if self.first.measure.nonfinite else _errors(self.first.measure)
        what = f"{self.first.operation} ({self.first.type})"
        return f"{self.path} parts ways with {self.against} at {what}, in {where}: {error}."

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "path": self.path,
            "case": self.case,
            "against": self.against,
            "how": self.how,
            "verdict": self.verdict(),
            "first": self.first.to_json() if self.first is not None else None,
            "unmatched": list(self.unmatched),
            "layers": [layer.to_json() for layer in self.layers],
        }


def first_apart(layers: tuple[Layer, ...]) -> Layer | None:
    """The first layer that is farther away than expected; None when no output is (then what is inside does no harm)."""
    if not any(layer.exceeds for layer in layers if layer.kind == OUTPUT):
        return None
    return next(layer for layer in layers if layer.exceeds)


#: The `kind` of layers that are outputs of the artifact.
OUTPUT = "output"


def unpadded(value: np.ndarray, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """The positions that are not padding, of a value with the mask's leading axes; any other value as it is."""
    mask = feeds.get("attention_mask")
    if mask is None or mask.ndim != 2 or value.shape[:2] != mask.shape:
        return value
    return value[mask != 0]


def _errors(measure: Measure) -> str:
    bound = measure.bound
    if bound is None:
        return f"error {measure.max_error:.2g}"
    if measure.max_error > bound.max_error:
        return f"error {measure.max_error:.2g} relative to its scale, at most {bound.max_error:.2g} expected"
    return f"rms error {measure.rms_error:.2g} relative to its scale, at most {bound.rms_error:.2g} expected"
