"""How far an artifact is from its reference, and how far it may be.

The measure is relative to the reference's own scale (its root mean square), so that a large model with large
activations and a small one with tiny outputs are judged alike:

- `max_error`: the largest absolute difference over the scale;
- `rms_error`: root mean square of the difference over the scale; the signal-to-noise ratio is -20 log10 of it;
- `cosine`: the smallest cosine over all cases;
- `agreement`: the mean cosine of rows (tokens, embeddings, logits: along the last axis), what `--min-agreement` bounds;
- `nonfinite`: how often the artifact gives NaN or infinity where the reference does not. One is fatal.

An fp32 artifact is held to the noise floor of the model itself: what eager PyTorch's fp32 differs from its own fp64 on
the same inputs, times a factor for kernels that sum in another order. The fixed 1e-5 that is usual flags a harmless
3e-3 on a large T5 and passes an all-wrong output that is tiny.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Other kernels block and vectorise sums otherwise and approximate exp, erf and tanh to a few units in the last place;
# on models whose fp64 difference is known, correct kernels stay within 4 times the noise floor, wrong ones beyond 100.
NOISE_FACTOR = 16.0
# fp16 keeps 11 bits of 24: the same chain of roundings is 2^13 times as coarse.
FP16_COARSER = 2.0**13


@dataclass(frozen=True)
class Noise:
    """The noise floor of one output: fp32 eager against fp64 eager, as `max_error` and `rms_error`."""

    max_error: float
    rms_error: float


@dataclass(frozen=True)
class Bound:
    """The largest errors at which an output still is the model's; of quantized artifacts, the least agreement."""

    max_error: float
    rms_error: float
    agreement: float | None = None


# Least bounds: a model may be so shallow that its own noise is below what one different rounding gives.
_LEAST_NOISE = Noise(max_error=2e-6, rms_error=3e-7)
# Greatest: past these an artifact is not the model, whatever the noise. 5e-2 is a cosine of 0.9987.
_GREATEST = {"fp32": Bound(1e-2, 1e-3), "fp16": Bound(0.5, 5e-2)}


def bound_for(precision: str, noise: Noise, min_agreement: float | None = None) -> Bound:
    """The bound of an output in a precision, from the model's noise floor (see the module's text).

    Args:
        min_agreement: what was asked of a quantized artifact, whose integers no noise floor describes; then it is all.
    """
    if min_agreement is not None:
        return Bound(math.inf, math.inf, min_agreement)
    floor = Noise(max(noise.max_error, _LEAST_NOISE.max_error), max(noise.rms_error, _LEAST_NOISE.rms_error))
    factor = NOISE_FACTOR if precision == "fp32" else 4 * FP16_COARSER
    greatest = _GREATEST.get(precision, _GREATEST["fp16"])
    return Bound(
        min(factor * floor.max_error, greatest.max_error),
        min(factor * floor.rms_error, greatest.rms_error),
    )


@dataclass(frozen=True)
class Measure:
    """One output of one artifact against the reference, over all cases."""

    output: str
    cases: int
    shapes: int
    max_error: float
    rms_error: float
    cosine: float
    nonfinite: int
    worst_case: str
    agreement: float = 1.0
    bound: Bound | None = None

    @property
    def snr_db(self) -> float:
        return -20 * math.log10(self.rms_error) if self.rms_error > 0 else math.inf

    @property
    def excess(self) -> float:
        """How many times the bound the error is: the larger of its two ratios (infinite for NaN or infinity)."""
        if self.nonfinite:
            return math.inf
        if self.bound is None or not (self.bound.max_error and self.bound.rms_error):
            return self.max_error
        if self.bound.agreement is not None:
            return (1 - self.agreement) / max(1 - self.bound.agreement, 1e-9)
        return max(self.max_error / self.bound.max_error, self.rms_error / self.bound.rms_error)

    @property
    def passed(self) -> bool:
        if self.nonfinite or self.cases == 0:
            return False
        if self.bound is None:
            return True
        if self.bound.agreement is not None:
            return self.agreement >= self.bound.agreement
        return self.max_error <= self.bound.max_error and self.rms_error <= self.bound.rms_error

    def found(self) -> str:
        """The number that is judged, for a table: the largest error, or the agreement of a quantized artifact."""
        if self.nonfinite:
            return "NaN"
        if self.bound is not None and self.bound.agreement is not None:
            return f"{self.agreement:.5f}"
        return f"{self.max_error:.1e}"

    def asked(self) -> str:
        """What `found` is held to; empty when to nothing (the task's decisions are, then)."""
        if self.bound is None:
            return ""
        if self.bound.agreement is not None:
            return f">= {self.bound.agreement:g}" if self.bound.agreement else ""
        return f"<= {self.bound.max_error:.1e}"

    def describe(self) -> str:
        """What went wrong, by how much, in one line."""
        if self.nonfinite:
            return (
                f"{self.output}: {self.nonfinite} values are NaN or infinite where the reference is finite "
                f"(first in case '{self.worst_case}')"
            )
        if self.cases == 0:
            return f"{self.output}: no case could be compared"
        limit = self.bound or Bound(math.inf, math.inf)
        if limit.agreement is not None:
            return (
                f"{self.output}: agreement {self.agreement:.5f} (at least {limit.agreement:g}), worst cosine "
                f"{self.cosine:.5f}, worst in '{self.worst_case}'"
            )
        return (
            f"{self.output}: max error {self.max_error:.3g} of its scale (allowed {limit.max_error:.3g}), rms "
            f"{self.rms_error:.3g} (allowed {limit.rms_error:.3g}), cosine {self.cosine:.6f}, "
            f"worst in '{self.worst_case}'"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, three significant digits: enough to judge, and stable between runs."""
        bound = (
            {key: _rounded(value) for key, value in dataclasses.asdict(self.bound).items() if value is not None}
            if self.bound
            else None
        )
        return {
            "output": self.output,
            "cases": self.cases,
            "shapes": self.shapes,
            "max_error": _rounded(self.max_error),
            "rms_error": _rounded(self.rms_error),
            "snr_db": _rounded(self.snr_db),
            "cosine": round(self.cosine, 7) if math.isfinite(self.cosine) else None,
            "agreement": round(self.agreement, 7),
            "nonfinite": self.nonfinite,
            "worst_case": self.worst_case,
            "bound": bound,
            "passed": self.passed,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Measure:
        """What `to_json` gave. Raises KeyError or TypeError for anything else."""
        bound = entry["bound"]
        if bound is not None:
            bound = Bound(_known(bound["max_error"]), _known(bound["rms_error"]), bound.get("agreement"))
        return cls(
            output=entry["output"],
            cases=entry["cases"],
            shapes=entry["shapes"],
            max_error=_known(entry["max_error"]),
            rms_error=_known(entry["rms_error"]),
            cosine=_known(entry["cosine"], math.nan),
            nonfinite=entry["nonfinite"],
            worst_case=entry["worst_case"],
            agreement=entry["agreement"],
            bound=bound,
        )


class Comparison:
    """Accumulates one output over cases."""

    def __init__(self, output: str):
        self.output = output
        self._cases = 0
        self._shapes: set[tuple[int, ...]] = set()
        self._max = self._rms = 0.0
        self._cosine = 1.0
        self._rows, self._agreement = 0, 0.0
        self._nonfinite = 0
        self._worst = ""

    def add(
        self, case: str, shape: Sequence[int], expected: np.ndarray, actual: np.ndarray, width: int | None = None
    ) -> None:
        """One case: expected and actual values (flat, same order; where the reference is not finite they do not count).

        Args:
            shape: the shape of the whole output in this case.
            width: how many values are a row, whose cosine counts for the agreement; None: all are one.
        """
        self._shapes.add(tuple(shape))
        expected, actual = np.asarray(expected, np.float64).ravel(), np.asarray(actual, np.float64).ravel()
        if expected.shape != actual.shape:
            raise ValueError(f"{expected.size} expected values against {actual.size}")
        known = np.isfinite(expected)
        if not known.all():
            expected, actual, width = expected[known], actual[known], None
        if not expected.size:
            return
        self._cases += 1
        bad = int(np.count_nonzero(~np.isfinite(actual)))
        if bad:
            if not self._nonfinite:
                self._worst = case
            self._nonfinite += bad
            return
        scale = _rms(expected) or 1.0
        difference = actual - expected
        largest = float(np.max(np.abs(difference))) / scale
        rms = _rms(difference) / scale
        if largest > self._max and not self._nonfinite:
            self._worst = case
        self._max, self._rms = max(self._max, largest), max(self._rms, rms)
        self._cosine = min(self._cosine, _cosine(expected, actual))
        cosines = _row_cosines(expected.reshape(-1, width or expected.size), actual.reshape(-1, width or expected.size))
        self._agreement += float(cosines.sum())
        self._rows += len(cosines)

    def noise(self) -> Noise:
        return Noise(self._max, self._rms)

    def measure(self, bound: Bound | None = None) -> Measure:
        return Measure(
            output=self.output,
            cases=self._cases,
            shapes=len(self._shapes),
            max_error=self._max,
            rms_error=self._rms,
            cosine=self._cosine,
            nonfinite=self._nonfinite,
            worst_case=self._worst,
            agreement=self._agreement / self._rows if self._rows else 1.0,
            bound=bound,
        )


@dataclass
class Agreement:
    """How often the task's own decision is the same: same label, same token, same span ends.

    A decision counts as `decided` when the reference's margin between its best and second-best is wider than the
    artifact's allowed error can bridge; where it is not, either answer is the model's.
    """

    same: int = 0
    total: int = 0
    decided: int = 0
    decided_same: int = 0
    least: float | None = None

    @property
    def share(self) -> float:
        """How many decisions are the same, 0..1."""
        return self.same / self.total if self.total else 1.0

    def add(self, expected: np.ndarray, actual: np.ndarray, tolerance: float) -> None:
        """Rows of scores (N, classes) of the reference and the artifact; tolerance in their units."""
        if expected.shape[-1] == 1:
            expected = np.concatenate([expected, np.zeros_like(expected)], axis=-1)
            actual = np.concatenate([actual, np.zeros_like(actual)], axis=-1)
        finite = np.isfinite(expected).all(axis=-1)
        expected, actual = expected[finite], actual[finite]
        if not len(expected):
            return
        best_two = np.partition(expected, -2, axis=-1)[:, -2:]
        decided = (best_two[:, 1] - best_two[:, 0]) > 2 * tolerance
        same = expected.argmax(axis=-1) == np.nan_to_num(actual, nan=-np.inf).argmax(axis=-1)
        self.same += int(same.sum())
        self.total += len(same)
        self.decided += int(decided.sum())
        self.decided_same += int((same & decided).sum())

    def count(self, same: bool, decided: bool) -> None:
        """A decision whose scores are not at hand."""
        self.same += same
        self.total += 1
        self.decided += decided
        self.decided_same += same and decided

    @property
    def excused(self) -> int:
        """Decisions that differ where the reference's own were too close to call."""
        return (self.total - self.same) - (self.decided - self.decided_same)

    @property
    def passed(self) -> bool:
        if self.least is not None:
            return self.share >= self.least
        return self.decided_same == self.decided

    def to_json(self) -> dict[str, Any]:
        counts = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        return {**counts, "passed": self.passed}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Agreement:
        """What `to_json` gave. Raises TypeError for anything else."""
        return cls(**{key: value for key, value in entry.items() if key != "passed"})


def _cosine(expected: np.ndarray, actual: np.ndarray) -> float:
    """Cosine of two vectors: 1 for two zeros, 0 for a zero and anything else."""
    peaks = [float(np.max(np.abs(values))) for values in (expected, actual)]
    if not all(peaks):
        return float(peaks[0] == peaks[1])
    one, other = expected / peaks[0], actual / peaks[1]
    return float(one @ other) / float(np.linalg.norm(one) * np.linalg.norm(other))


def _row_cosines(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Cosines of the rows of two matrices: 1 for two rows of zeros, 0 for one of zeros and anything else."""
    scale, other = (np.max(np.abs(rows), axis=1, keepdims=True) for rows in (expected, actual))
    one, two = expected / np.where(scale > 0, scale, 1), actual / np.where(other > 0, other, 1)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    cosines = np.sum(one * two, axis=1) / np.where(norms > 0, norms, 1)
    return np.where(norms > 0, cosines, ((scale > 0) == (other > 0))[:, 0].astype(float))


def _rms(values: np.ndarray) -> float:
    """Root mean square, without underflow of tiny values or overflow of huge ones."""
    peak = float(np.max(np.abs(values)))
    return peak * math.sqrt(float(np.mean((values / peak) ** 2))) if peak else 0.0


def _rounded(value: float) -> float | None:
    return float(f"{value:.3g}") if math.isfinite(value) else None


def _known(value: float | None, otherwise: float = math.inf) -> float:
    """What was `_rounded`: None stands for no finite number."""
    return otherwise if value is None else float(value)
