"""What verifying found: about one artifact, and about all of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .cause import Cause
from .parity import Agreement, Measure


@dataclass
class ArtifactReport:
    """What was found about one artifact. `status` is `passed`, `failed` or `not executed` (then `reason` says why)."""

    target: str
    path: str
    precision: str
    status: str
    engine: str | None = None
    reason: str | None = None
    measures: list[Measure] = field(default_factory=list)
    agreement: Agreement | None = None
    cases: int = 0
    skipped: list[str] = field(default_factory=list)
    cause: Cause | None = None
    golden: dict[str, float] = field(default_factory=dict)  # of quantized ones, the agreement of outputs on these
    seconds: float = 0.0  # all runs together, comparing included; no part of any file

    @property
    def problems(self) -> list[str]:
        """Every reason for which the artifact failed."""
        found = [measure.describe() for measure in self.measures if not measure.passed]
        if self.agreement is not None and not self.agreement.passed:
            wrong = self.agreement.decided - self.agreement.decided_same
            if self.agreement.least is not None:
                wrong = self.agreement.total - self.agreement.same
            found.append(f"the task's decision differs {wrong} times out of {self.agreement.total}")
        if self.reason and self.status == "failed":
            found.insert(0, self.reason)
        return found

    @property
    def agreed(self) -> float:
        """The agreement of the output where it is least; 0 when the artifact could not be compared."""
        return min((measure.agreement for measure in self.measures if not measure.nonfinite), default=0.0)

    @property
    def worst(self) -> Measure | None:
        """The output that is farthest from the reference, in terms of what it is allowed."""
        measured = [measure for measure in self.measures if measure.cases]
        return max(measured, key=lambda m: (m.nonfinite, m.excess), default=None)

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "path": self.path,
            "precision": self.precision,
            "status": self.status,
            "engine": self.engine,
            "reason": self.reason,
            "cases": self.cases,
            "skipped": self.skipped,
            "outputs": [measure.to_json() for measure in self.measures],
            "agreement": self.agreement.to_json() if self.agreement is not None else None,
            "cause": self.cause.to_json() if self.cause is not None else None,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> ArtifactReport:
        """What `to_json` gave. Raises KeyError or TypeError for anything else."""
        agreement, cause = entry["agreement"], entry["cause"]
        return cls(
            **{key: entry[key] for key in ("target", "path", "precision", "status", "engine", "reason", "cases")},
            skipped=list(entry["skipped"]),
            measures=[Measure.from_json(output) for output in entry["outputs"]],
            agreement=None if agreement is None else Agreement.from_json(agreement),
            cause=None if cause is None else Cause.from_json(cause),
        )


@dataclass
class Report:
    """The reports of all artifacts. `passed` only when each was executed and passed or could not be executed here."""

    reference: str
    artifacts: list[ArtifactReport]
    tokenizer: dict[str, Any] | None = None

    @property
    def failed(self) -> list[ArtifactReport]:
        return [report for report in self.artifacts if report.status == "failed"]

    @property
    def passed(self) -> bool:
        executed = any(report.status == "passed" for report in self.artifacts)
        return executed and not self.failed and (self.tokenizer is None or self.tokenizer["passed"])

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "reference": self.reference,
            "tokenizer": self.tokenizer,
            "artifacts": [report.to_json() for report in self.artifacts],
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Report:
        """What `to_json` gave, as `parity.json` holds it. Raises KeyError or TypeError for anything else."""
        artifacts = [ArtifactReport.from_json(artifact) for artifact in entry["artifacts"]]
        return cls(entry["reference"], artifacts, entry["tokenizer"])
