"""How well the artifacts of a plan agree with the reference, by the metric that was asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..quantize.scheme import Plan
from ..runtime.assembly import open_artifacts, signature
from ..runtime.errors import RequestError
from ..runtime.evaluation import evaluate, predictor
from ..runtime.gate import ON_CALIBRATION, on_golden
from ..runtime.golden import GoldenCase
from ..runtime.labelled import Dataset, read_data
from ..runtime.manifest import Artifact, Manifest
from ..runtime.pipelines import pipeline_over
from ..runtime.reports import ArtifactReport
from ..runtime.session import Session
from ..runtime.tokenizer import Tokenizer
from ..runtime.verify import decides, golden_cases
from .capture import Captured
from .compress import Attempt, Request
from .quantization import Feeds, carried, single_rows
from .reference import Reference
from .targets import Options, Target
from .work import Work, artifact_bytes


@dataclass
class Judge:
    """Executes plans and scores the artifacts.

    golden: what the finished bundle will be verified on. calibration: inputs for targets that calibrate for themselves.
    jobs: every method that is lowered, with its target. held_out: whether the cases are texts of the user's that
    calibration did not see.
    """

    work: Work
    jobs: Sequence[tuple[Target, Captured]]
    request: Request
    options: Options
    reference: Reference
    golden: Sequence[GoldenCase]
    calibration: Sequence[Feeds] = ()
    held_out: bool = False
    _data: Dataset | None = field(default=None, init=False)
    _score: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.request.metric == "top1" and not decides(self.work.manifest.task):
            raise RequestError(f"--metric top1: {self.work.manifest.task} makes no decision that could be compared.")

    def execute(self, captured: Captured, plan: Plan) -> Attempt:
        """Lower a quantized model to every target in its place in the bundle, and judge the artifacts."""
        work = self.work
        options = dataclasses.replace(self.options, precision=plan.precision)
        captures = [carried(captured, other) for _, other in self.jobs]
        artifacts = [
            self._planned(target, own, options, plan) for (target, _), own in zip(self.jobs, captures, strict=True)
        ]
        reports = [self._also_golden(report) for report in work.execute(captures, artifacts)]
        agreements = [report.agreed for report in reports if report.status != "not executed"]
        if self.request.metric == "top1":
            agreements = [report.agreement.share if report.agreement else 0.0 for report in reports if report.measures]
        elif self.request.metric == "accuracy":
            agreements = [self._accuracy(report) for report in reports if report.measures]
        return Attempt(
            reports,
            min(agreements, default=0.0),
            {name: self._bytes(name) for name in work.manifest.targets},
            {entry.target: round(1000 * entry.seconds / max(entry.cases, 1), 2) for entry in reports},
        )

    def _planned(self, target: Target, captured: Captured, options: Options, plan: Plan) -> Artifact:
        if not captured.quantized:  # a method none of whose weights the plan names
            options = dataclasses.replace(options, precision=self.options.precision)
        artifact = target.plan(captured, options)
        if target.calibrate is not None:
            artifact = target.calibrate(captured, artifact, single_rows(self.calibration))
        quantization = {**(artifact.quantization or {}), **self.request.stated(plan)}
        if self.held_out:
            quantization["judged_on"] = ON_CALIBRATION
        return dataclasses.replace(artifact, quantization=quantization)

    def _bytes(self, target: str) -> int:
        return sum(artifact_bytes(self.work.root / artifact.path) for artifact in self.work.manifest.parts(target))

    def _also_golden(self, report: ArtifactReport) -> ArtifactReport:
        """A bundle's later checks run on its golden vectors: what they give is recorded, what fails has failed here."""
        if report.status == "not executed" or (report.status == "failed" and not self.request.keep_best):
            return report
        parts = self.work.manifest.parts(report.target)
        least = on_golden(signature(parts))
        found = self.work.verify(self.work.root, parts, cases=golden_cases(self.golden), least=least)
        worse = found if found.status == "failed" and report.status == "passed" else report
        worse.golden = {measure.output: round(measure.agreement, 7) for measure in found.measures}
        return worse

    def _accuracy(self, report: ArtifactReport) -> float:
        """The artifact's score on the labelled data as a share of the reference's (1 when both are 0)."""
        manifest, root = self.work.manifest, self.work.root
        parts = manifest.parts(report.target)
        session = open_artifacts(root, parts, manifest, threads=1)
        score = self._evaluate(manifest, root, session)
        if self._score is None:
            from .eager import EagerRunner

            eager = dataclasses.replace(signature(parts), target="eager", outputs=self.reference.outputs)
            self._score = self._evaluate(manifest, root, Session(eager, EagerRunner(self.reference)))
        share = min(score / self._score, 1.0) if self._score else float(score == self._score)
        if share < self.request.bound:
            report.status = "failed"
            report.reason = f"its score on {self.request.data} is {score:.4f}, the reference's {self._score:.4f}"
        return share

    def _evaluate(self, manifest: Manifest, root: Path, session: Session) -> float:
        spec = manifest.tokenizer
        if spec is None or self.request.data is None:
            raise RequestError("--metric accuracy needs a model of text and labelled examples: --data FILE.")
        tokenizer = Tokenizer.open(root / spec.path, spec)
        pipeline = pipeline_over(manifest, tokenizer, session)
        if pipeline is None:
            raise RequestError(f"--metric accuracy: nothing scores the task '{manifest.task}'.")
        if self._data is None:
            self._data = read_data(self.request.data, manifest, tokenizer)
        return evaluate(predictor(pipeline, self._data), self._data).main
