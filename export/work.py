"""Artifacts in the making: lowered to their places in a bundle, and verified there."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.assembly import open_artifacts, signature
from ..runtime.errors import DamagedError
from ..runtime.gate import Least
from ..runtime.manifest import Artifact, Manifest
from ..runtime.parity import Noise
from ..runtime.reports import ArtifactReport
from ..runtime.verify import Case, verify_artifact
from .capture import Captured
from .mapped import release, trim
from .targets import Target

# Bytes of weights from which on it matters what stays in memory between stages.
LARGE = 256 * 2**20

# Called with what happens next and of how many steps it consists; gives what to call after each.
Progress = Callable[[str, int], Callable[[], None]]


@dataclass
class Work:
    """A bundle's folder, and what artifacts in it are made for and held to. `manifest` is that of the last ones made.

    seconds: what each stage took, by name.
    """

    root: Path
    manifest: Manifest
    targets: Mapping[str, Target]
    cases: Sequence[Case]
    noise: dict[str, Noise]
    start: Progress
    seconds: dict[str, float]

    def execute(self, captures: Sequence[Captured], artifacts: Sequence[Artifact]) -> list[ArtifactReport]:
        """Lower captured methods, each to its planned artifact, in place of what stands there, and verify them."""
        self.lower(captures, artifacts)
        return self.verified(captures)

    def lower(self, captures: Sequence[Captured], artifacts: Sequence[Artifact]) -> None:
        """Lower captured methods, each to its planned artifact, in place of what stands there."""
        self.manifest = dataclasses.replace(self.manifest, artifacts=tuple(artifacts)).with_identity()
        for folder in {artifact.path.split("/")[0] for artifact in artifacts}:
            shutil.rmtree(self.root / folder, ignore_errors=True)
        for captured, artifact in zip(captures, artifacts, strict=True):
            target = self.targets[artifact.target]
            with timed(self.seconds, target.name):
                advance = self.start(f"Lowering to {target.name}", 1)
                free(captures)
                target.lower(captured, artifact, self.manifest.identity, self.root / artifact.path)
                advance()

    def verified(self, captures: Sequence[Captured]) -> list[ArtifactReport]:
        """Verify what was lowered. One report a target: its artifacts that are called in turn are verified together."""
        reports = []
        for target_name in self.manifest.targets:
            with timed(self.seconds, f"verify {target_name}"):
                parts = self.manifest.parts(target_name)
                advance = self.start(f"Verifying {signature(parts).path}", len(self.cases))
                free(captures)
                reports.append(self.verify(self.root, parts, advance))
        return reports

    def verify(
        self,
        root: Path,
        artifacts: Sequence[Artifact],
        advance: Callable[[], None] | None = None,
        cases: Sequence[Case] | None = None,
        least: Least | None = None,
    ) -> ArtifactReport:
        """Verify the artifacts of one target below a folder, on all cases or on others; `least`: what they keep.

        What does not even load has failed: it was lowered a moment ago, so nobody has damaged it.
        """
        whole = signature(artifacts)
        try:
            return verify_artifact(
                whole,
                lambda: open_artifacts(root, artifacts, self.manifest, threads=1),
                self.cases if cases is None else cases,
                task=self.manifest.task,
                tokenizer=self.manifest.tokenizer,
                noise=self.noise,
                least=least,
                progress=advance,
            )
        except DamagedError as error:
            reason = str(error).replace(f"{root}/", "")
            return ArtifactReport(whole.target, whole.path, whole.precision, status="failed", reason=reason)


def free(captures: Sequence[Captured]) -> None:
    """Let go of what the stage before left in memory: weights that it read, and objects that refer to each other.

    Looking for them takes half a second, which is not worth it for a small model.
    """
    if max(captured.weight_bytes for captured in captures) >= LARGE:
        gc.collect()
        trim()
        release()


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note how long a block took, all its times together."""
    began = time.perf_counter()
    yield
    seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - began, 2)


def artifact_bytes(path: Path) -> int:
    """The size of an artifact: a file with its external data, or all files of a package."""
    files = path.rglob("*") if path.is_dir() else [path]
    if path.is_file():
        files = [path, *path.parent.glob(f"{path.name}.data")]
    return sum(file.stat().st_size for file in files if file.is_file())
