"""What a quantized artifact has to keep: the agreement that was asked for, and about the one it had when it was made.

At export an artifact is judged by the metric of the request. That may be a share of decisions, a score on labelled
data, or a cosine on texts of the user's: then the bound says little or nothing of the outputs that golden vectors give.
So their agreement is recorded as it was measured, and a later check holds the artifact to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .manifest import Artifact, Manifest

# An artifact's `quantization["judged_on"]` when the cases were texts of the user's, held back from calibration.
ON_CALIBRATION = "calibration"
# How many times as far from the reference as at export an artifact may be, on golden vectors and on other inputs:
# kernels of another machine round sums in another order, and with them now and then an input to the integer beside.
_ON_GOLDEN, _ELSEWHERE = 2.0, 4.0
# What fp16 and fp32 sums in another order change by themselves.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Least:
    """The least agreement of outputs (`asked` of all, `recorded` by name) and of the task's decisions; None: none."""

    asked: float | None = None
    decisions: float | None = None
    recorded: Mapping[str, float] = field(default_factory=dict)

    def of(self, output: str) -> float | None:
        """The bound of an output, whichever is stricter."""
        return None if self.asked is None else max(self.asked, self.recorded.get(output, 0.0))


def asked(artifact: Artifact) -> Least:
    """What the artifact was asked to keep on the inputs that it is judged on at export."""
    quantization = artifact.quantization or {}
    bound = quantization.get("min_agreement")
    if bound is None:
        return Least()
    metric = quantization.get("metric", "cosine")
    return Least(bound if metric == "cosine" else 0.0, {"cosine": None, "top1": bound}.get(metric, 0.0))


def on_golden(artifact: Artifact) -> Least:
    """What it was asked to keep on the golden vectors; nothing where it was judged on texts of the user's."""
    least = asked(artifact)
    elsewhere = (artifact.quantization or {}).get("judged_on") == ON_CALIBRATION
    return Least(0.0, 0.0) if elsewhere and least.asked is not None else least


def later(manifest: Manifest, artifact: Artifact, golden: bool) -> Least:
    """What the artifact of a finished bundle has to keep.

    Args:
        golden: on the golden vectors; else on other inputs, with the eager model as the reference.
    """
    least = on_golden(artifact)
    if least.asked is None:
        return least
    known = manifest.parity.get("artifacts", {}).get(artifact.target, {})
    found = known.get("golden", {})
    if golden:
        return Least(least.asked, least.decisions, {name: _below(value, _ON_GOLDEN) for name, value in found.items()})
    if least.asked or not found:
        return least
    lowest = min([*found.values(), known.get("agreement") or 1.0])
    return Least(least.asked, least.decisions, dict.fromkeys(found, _below(lowest, _ELSEWHERE)))


def of_one_input(artifact: Artifact) -> float | None:
    """The least agreement on any one input, whose mean is what is bounded; None: no bound."""
    bound = asked(artifact).asked
    return None if bound is None else _below(bound, _ELSEWHERE)


def _below(measured: float, times: float) -> float:
    return max(1 - times * (1 - measured) - _ROUNDING, 0.0)
