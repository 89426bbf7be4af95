"""Opening an `.mlpackage`: its manifest, the model specification in it, and the weight files it refers to.

A package is a folder with `Manifest.json` (item identifiers and their paths under `Data/`; `rootModelIdentifier` names
the model). Weight files are named `@model_path/...`, relative to the folder of the model. Nothing outside the package
is opened.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from ..errors import DamagedError, RequestError, UnsupportedError
from .blobs import BlobFile
from .schema import Model

_MAX_MANIFEST = 1 << 20


class Package:
    """An opened package: `spec` is the `Model` message, `blob(name)` a mapped weight file."""

    def __init__(self, path: str | Path) -> None:
        try:
            self.path = Path(path)
        except TypeError as error:
            raise RequestError(f"{path!r} is not a path; give the path of an .mlpackage") from error
        self.model_path = self._find_model()
        self.spec = _read_model(self.model_path)
        self.blob = cache(self._open_blob)

    def _find_model(self) -> Path:
        path = self.path
        if not path.exists():
            raise RequestError(f"{path}: no such file; give the path of an .mlpackage")
        if path.is_file():
            return path
        manifest = path / "Manifest.json"
        if not manifest.is_file():
            kind = "a compiled .mlmodelc" if path.suffix == ".mlmodelc" else "not an .mlpackage"
            raise RequestError(f"{path}: no Manifest.json in it ({kind}); give the path of an .mlpackage")
        try:
            if manifest.stat().st_size > _MAX_MANIFEST:
                raise DamagedError(f"{manifest}: too large for a manifest")
            content = json.loads(manifest.read_text("utf-8"))
            item = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedError(f"{manifest}: damaged, it names no root model ({error!r})") from error
        return self._inside(path / "Data", item, f"{manifest}: root model")

    def _inside(self, folder: Path, relative: Any, what: str) -> Path:
        """`folder / relative`, refused when it is not a file inside the package."""
        if not isinstance(relative, str) or not relative or "\0" in relative:
            raise DamagedError(f"{what}: {relative!r} is not a path")
        target = folder / relative
        try:
            real = target.resolve()
            inside = any(real.is_relative_to(root) for root in self._roots()) and ".." not in Path(relative).parts
        except OSError as error:
            raise DamagedError(f"{what}: cannot resolve {relative}: {error}") from error
        if not inside or Path(relative).is_absolute():
            raise DamagedError(f"{what}: {relative!r} leads out of the package; refused")
        if not target.is_file():
            raise DamagedError(f"{what}: {relative} is missing from the package {self.path}")
        return target

    def _roots(self) -> list[Path]:
        """Folders that files of the package may really be in: its own, and the blobs of a Hugging Face cache around it.

        huggingface_hub keeps `snapshots/<revision>/` as symbolic links into `blobs/` beside it.
        """
        package = (self.path if self.path.is_dir() else self.path.parent).absolute()
        caches = [parent.parent / "blobs" for parent in package.parents if parent.name == "snapshots"]
        return [folder.resolve() for folder in (package, *caches)]

    def _open_blob(self, name: str) -> BlobFile:
        if not name.startswith("@model_path/"):
            raise DamagedError(f"weight file {name!r}: expected a path that begins with @model_path/; refused")
        return BlobFile(self._inside(self.model_path.parent, name.removeprefix("@model_path/"), "weight file"))


def _read_model(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"cannot read the model {path}: {error}") from error
    try:
        spec = Model.FromString(data)
    except DecodeError as error:
        raise DamagedError(f"{path}: not a Core ML model, or truncated ({error})") from error
    kind = spec.WhichOneof("Type")
    if kind is None:
        raise DamagedError(f"{path}: holds no model; it is empty, truncated or not a Core ML model")
    if kind != "mlProgram":
        remedy = (
            "Load the models that it is made of one by one."
            if kind.startswith("pipeline")
            else 'Convert it with convert_to="mlprogram" (minimum deployment target iOS 15 or newer).'
        )
        raise UnsupportedError(f"{path}: a model of type {kind}; only ML Programs can be executed. {remedy}")
    return spec
