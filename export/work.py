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
from ..runtime.golden import GoldenCase
from ..runtime.manifest import Artifact, Manifest
from ..runtime.parity import Noise
from ..runtime.reports import ArtifactReport
from ..runtime.verify import Case, verify_artifact
from .aside import Turns, beside, worthwhile
from .capture import Captured
from .mapped import release, trim
from .targets import Target

# Bytes of weights from which on it matters what stays in memory between stages.
LARGE = 256 * 2**20

# Called with what happens next and of how many steps it consists; gives what to call after each.
Progress = Callable[[str, int], Callable[[], None]]


@dataclass(frozen=True)
class Known:
    """What artifacts are held to, what apps hold them to, and how long the reference took (seconds)."""

    cases: Sequence[Case]
    noise: dict[str, Noise]
    golden: list[GoldenCase]
    seconds: float


@dataclass
class Work:
    """A bundle's folder, and what artifacts in it are made for and held to. `manifest` is that of the last ones made.

    known: waits for the reference, if it is still running.
    seconds: what each stage took, by name. processes: how many may lower (see `aside.py`).
    """

    root: Path
    manifest: Manifest
    targets: Mapping[str, Target]
    known: Callable[[], Known]
    start: Progress
    seconds: dict[str, float]
    processes: int = 1

    def execute(self, captures: Sequence[Captured], artifacts: Sequence[Artifact]) -> list[ArtifactReport]:
        """Lower captured methods, each to its planned artifact, in place of what stands there, and verify them.

        Where there is room another process lowers too, from the last target back, and is not waited for before what
        this one lowered is verified. Only this one verifies: what executes artifacts keeps threads, which no fork has.

        Returns:
            One report a target: its artifacts that are called in turn are verified together.
        """
        self.manifest = dataclasses.replace(self.manifest, artifacts=tuple(artifacts)).with_identity()
        for folder in {artifact.path.split("/")[0] for artifact in artifacts}:
            shutil.rmtree(self.root / folder, ignore_errors=True)
        names = self.manifest.targets
        apart = len(names) > 1 and worthwhile(self.processes, max(captured.weight_bytes for captured in captures))
        turns = Turns(len(names)) if apart else None

        def from_the_last() -> Iterator[float]:
            while turns is not None and (place := turns.last()) is not None:
                began = time.perf_counter()
                self._lower(names[place], captures, artifacts)
                yield time.perf_counter() - began

        with beside(from_the_last, apart, comes_first=False) as other:
            own = 0
            for place in range(len(names)) if turns is None else iter(turns.first, None):
                with timed(self.seconds, names[place]):
                    advance = self.start(f"Lowering to {names[place]}", 1)
                    self._lower(names[place], captures, artifacts)
                    advance()
                own = place + 1
            reports = {name: self._verified(name, captures) for name in names[:own]}
            for name in reversed(names[own:]):
                advance = self.start(f"Lowering to {name}", 1)
                add_seconds(self.seconds, name, other.get())
                advance()
                reports[name] = self._verified(name, captures)
        return [reports[name] for name in names]

    def _lower(self, name: str, captures: Sequence[Captured], artifacts: Sequence[Artifact]) -> None:
        for captured, artifact in zip(captures, artifacts, strict=True):
            if artifact.target == name:
                free(captures)
                self.targets[name].lower(captured, artifact, self.manifest.identity, self.root / artifact.path)

    def _verified(self, name: str, captures: Sequence[Captured]) -> ArtifactReport:
        known = self.known()
        with timed(self.seconds, f"verify {name}"):
            parts = self.manifest.parts(name)
            advance = self.start(f"Verifying {signature(parts).path}", len(known.cases))
            free(captures)
            return self.verify(self.root, parts, advance)

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
        whole, known = signature(artifacts), self.known()
        try:
            return verify_artifact(
                whole,
                lambda: open_artifacts(root, artifacts, self.manifest, threads=1),
                known.cases if cases is None else cases,
                task=self.manifest.task,
                tokenizer=self.manifest.tokenizer,
                noise=known.noise,
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
    add_seconds(seconds, stage, time.perf_counter() - began)


def add_seconds(seconds: dict[str, float], stage: str, took: float) -> None:
    """Note that a stage took so long, once more."""
    seconds[stage] = round(seconds.get(stage, 0.0) + took, 2)


def artifact_bytes(path: Path) -> int:
    """The size of an artifact: a file with its external data, or all files of a package."""
    files = path.rglob("*") if path.is_dir() else [path]
    if path.is_file():
        files = [path, *path.parent.glob(f"{path.name}.data")]
    return sum(file.stat().st_size for file in files if file.is_file())
