"""A bundle on disk: opened, checked, and its artifacts made ready to run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .assembly import open_artifacts, signature
from .backends import BACKENDS, get_backend
from .errors import DamagedError, RequestError
from .manifest import MANIFEST_NAME, Artifact, File, Manifest
from .media import prepare
from .session import Session
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .golden import GoldenCase
    from .reports import Report

GOLDEN_NAME = "golden.jsonl"
PARITY_NAME = "parity.json"
PLAN_NAME = "plan.json"
CARD_NAME = "README.md"


class Bundle:
    """The folder that an app embeds. Open one with `Bundle.open`."""

    def __init__(self, root: Path, manifest: Manifest):
        self.root = root
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read and check the manifest, and that every file it names is there with its size.

        Vocabularies, golden vectors and cards are hashed as well. Model files are not, so that opening stays fast:
        they carry the manifest's identity, and `check_files` hashes everything.

        Raises:
            RequestError: there is no such folder, or it is not a bundle.
            DamagedError: the manifest is not valid, or a file is missing or altered.
        """
        root = Path(path)
        if not root.is_dir():
            raise RequestError(f"No such bundle: {path}.")
        if not (root / MANIFEST_NAME).is_file():
            hint = " It looks like a checkpoint: palmtop export makes a bundle of it." if _is_checkpoint(root) else ""
            raise RequestError(f"{path} has no {MANIFEST_NAME}, so it is not a palmtop bundle.{hint}")
        bundle = cls(root, Manifest.read(root / MANIFEST_NAME))
        bundle._check_listed()
        for file in bundle.manifest.files:
            bundle._check_size(file)
            if file.role != "artifact":
                bundle._check_hash(file)
        return bundle

    def check_files(self, progress: Callable[[File], None] | None = None) -> None:
        """Hash every file. Raises DamagedError naming one that differs, or that the manifest does not list."""
        for file in self.manifest.files:
            self._check_size(file)
            self._check_hash(file)
            if progress is not None:
                progress(file)
        listed = {file.path for file in self.manifest.files} | {MANIFEST_NAME}
        for place in sorted(self.root.rglob("*")):
            relative = place.relative_to(self.root).as_posix()
            if place.is_symlink():
                raise DamagedError(f"{relative} is a symbolic link; a bundle holds plain files only.")
            if place.is_file() and relative not in listed:
                raise DamagedError(f"{relative} is not in the manifest: something was added to the bundle.")

    def parts(self, target: str) -> tuple[Artifact, ...]:
        """The artifacts of a target. Raises RequestError naming those the bundle has."""
        artifacts = self.manifest.parts(target)
        if not artifacts:
            raise RequestError(f"This bundle has no {target} artifact. It has: {', '.join(self.manifest.targets)}.")
        return artifacts

    def artifact(self, target: str) -> Artifact:
        """What the artifacts of a target are called with together (`assembly.signature`). Errors as in `parts`."""
        return signature(self.parts(target))

    def open_session(self, target: str | None = None, threads: int | None = None) -> Session:
        """Load the artifact of a target; with None the first one that this machine can execute.

        Raises:
            RequestError: no such artifact, or nothing here executes it.
            DamagedError: the artifact is damaged or belongs to another bundle.
        """
        if target is None:
            target = self._preferred_target()
        return open_artifacts(self.root, self.parts(target), self.manifest, threads)

    def _preferred_target(self) -> str:
        reasons = []
        for target in BACKENDS:
            if not self.manifest.parts(target):
                continue
            missing = get_backend(target).missing()
            if missing is None:
                return target
            reasons.append(f"{target}: {missing}")
        raise RequestError("Nothing on this machine executes this bundle.\n" + "\n".join(reasons))

    def golden(self) -> list[GoldenCase]:
        """The golden vectors. Raises DamagedError when they are missing or not valid."""
        from .golden import read_golden  # opening a bundle does without it

        return read_golden(self.root / GOLDEN_NAME, self._prepare)

    def report(self) -> Report:
        """What was measured when the bundle was made. Raises DamagedError when it is missing or not valid."""
        import json

        from .reports import Report

        try:
            return Report.from_json(json.loads((self.root / PARITY_NAME).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{PARITY_NAME} cannot be read ({error}). Export the bundle again.") from error

    def _prepare(self, kind: str, path: str) -> dict[str, np.ndarray]:
        """The model's inputs of a picture or a sound that lies in the bundle."""
        if not any(file.path == path for file in self.manifest.files):
            raise DamagedError(f"The manifest does not list {path} among its files. Export the bundle again.")
        return prepare(self.manifest.preprocess, kind, self.root / path)

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None for models without text. Raises DamagedError when it cannot be read."""
        spec = self.manifest.tokenizer
        return Tokenizer.open(self.root / spec.path, spec) if spec is not None else None

    def _check_listed(self) -> None:
        """What the manifest refers to is among its files, whose hashes it states."""
        spec = self.manifest.tokenizer
        needed = [artifact.path for artifact in self.manifest.artifacts] + ([spec.path] if spec is not None else [])
        files = [file.path for file in self.manifest.files]
        for path in needed:
            if not any(file == path or file.startswith(f"{path}/") for file in files):
                raise DamagedError(f"The manifest does not list {path} among its files. Export the bundle again.")

    def _check_size(self, file: File) -> None:
        path = self.root / file.path
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise DamagedError(f"{file.path} leads out of the bundle.")
        if not path.is_file():
            raise DamagedError(f"{file.path} is missing from the bundle. Export it again.")
        size = path.stat().st_size
        if size != file.size:
            raise DamagedError(
                f"{file.path} has {size} bytes, the manifest says {file.size}: it was cut or altered. "
                "Export the bundle again."
            )

    def _check_hash(self, file: File) -> None:
        if sha256_file(self.root / file.path) != file.sha256:
            raise DamagedError(f"{file.path} was altered: its SHA-256 is not the manifest's. Export the bundle again.")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_checkpoint(root: Path) -> bool:
    return (root / "config.json").is_file()
