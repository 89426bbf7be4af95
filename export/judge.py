"""How well the artifacts of a plan agree with the reference, by the metric that was asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..quantize.scheme import Plan
from ..runtime.errors import RequestError
from ..runtime.evaluation import evaluate, predictor
from ..runtime.gate import ON_CALIBRATION, on_golden
from ..runtime.golden import GoldenCase
from ..runtime.labelled import Dataset, read_data
from ..runtime.manifest import Artifact, Manifest
from ..runtime.pipelines import pipeline_over
from ..runtime.session import Session
from ..runtime.tokenizer import Tokenizer
from ..runtime.verify import ArtifactReport, decides, golden_cases
from .capture import Captured
from .compress import Attempt, Request
from .quantization import Feeds, single_rows
from .reference import Reference
from .targets import Options, Target
from .work import Work, artifact_bytes


@dataclass
class Judge:
    """Executes plans and scores the artifacts.

    golden: what the finished bundle will be verified on. calibration: inputs for targets that calibrate for themselves.
    held_out: whether the cases are texts of the user's that calibration did not see.
    """

    work: Work
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
        artifacts = [self._planned(target, captured, options, plan) for target in self.work.targets.values()]
        reports = [self._also_golden(report) for report in work.execute([captured] * len(artifacts), artifacts)]
        agreements = [report.agreed for report in reports if report.status != "not executed"]
        if self.request.metric == "top1":
            agreements = [report.agreement.share if report.agreement else 0.0 for report in reports if report.measures]
        elif self.request.metric == "accuracy":
            agreements = [self._accuracy(report) for report in reports if report.measures]
        return Attempt(
            reports,
            min(agreements, default=0.0),
            {artifact.target: artifact_bytes(work.root / artifact.path) for artifact in work.manifest.artifacts},
            {entry.target: round(1000 * entry.seconds / max(entry.cases, 1), 2) for entry in reports},
        )

    def _planned(self, target: Target, captured: Captured, options: Options, plan: Plan) -> Artifact:
        artifact = target.plan(captured, options)
        if target.calibrate is not None:
            artifact = target.calibrate(captured, artifact, single_rows(self.calibration))
        quantization = {**(artifact.quantization or {}), **self.request.stated(plan)}
        if self.held_out:
            quantization["judged_on"] = ON_CALIBRATION
        return dataclasses.replace(artifact, quantization=quantization)

    def _artifact(self, report: ArtifactReport) -> Artifact:
        return next(entry for entry in self.work.manifest.artifacts if entry.target == report.target)

    def _also_golden(self, report: ArtifactReport) -> ArtifactReport:
        """A bundle's later checks run on its golden vectors: what they give is recorded, what fails has failed here."""
        if report.status == "not executed" or (report.status == "failed" and not self.request.keep_best):
            return report
        artifact = self._artifact(report)
        found = self.work.verify(self.work.root, [artifact], cases=golden_cases(self.golden), least=on_golden(artifact))
        worse = found if found.status == "failed" and report.status == "passed" else report
        worse.golden = {measure.output: round(measure.agreement, 7) for measure in found.measures}
        return worse

    def _accuracy(self, report: ArtifactReport) -> float:
        """The artifact's score on the labelled data as a share of the reference's (1 when both are 0)."""
        manifest, root = self.work.manifest, self.work.root
        artifact = self._artifact(report)
        session = Session.open(root, artifact, manifest.identity, threads=1)
        score = self._evaluate(manifest, root, session)
        if self._score is None:
            from .eager import EagerRunner

            eager = dataclasses.replace(artifact, target="eager", outputs=self.reference.outputs)
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
