"""What is in a bundle: sizes, signatures, operations, and what takes them. Nothing is loaded or run."""

from __future__ import annotations

from typing import Any

from .backends import get_backend
from .bundle import Bundle
from .manifest import Artifact, TensorSpec


def inspect_bundle(bundle: Bundle) -> dict[str, Any]:
    """The content of a bundle as plain values.

    Returns:
        The manifest's source, task, license and identity; `size` in bytes; `tokenizer`; and for each of `artifacts` its
        size, precision, oldest systems, inputs and outputs as text, and its `contents` (see `Contents`).

    Raises:
        DamagedError: an artifact cannot be read.
    """
    manifest = bundle.manifest
    return {
        "source": manifest.to_json()["source"],
        "task": manifest.task,
        "identity": manifest.identity,
        "producer": manifest.producer,
        "size": sum(file.size for file in manifest.files),
        "tokenizer": manifest.to_json()["tokenizer"],
        "preprocess": manifest.preprocess,
        "postprocess": manifest.postprocess,
        "parity": manifest.parity,
        "artifacts": [_artifact(bundle, artifact) for artifact in manifest.artifacts],
    }


def artifact_size(bundle: Bundle, artifact: Artifact) -> int:
    """Bytes of an artifact with everything beside it that it needs (external weights, the files of a package)."""
    folder = artifact.path.split("/")[0] + "/"
    return sum(file.size for file in bundle.manifest.files if file.role == "artifact" and file.path.startswith(folder))


def _artifact(bundle: Bundle, artifact: Artifact) -> dict[str, Any]:
    contents = get_backend(artifact.target).contents(bundle.root / artifact.path)
    return {
        "target": artifact.target,
        "path": artifact.path,
        "size": artifact_size(bundle, artifact),
        "precision": artifact.precision,
        "minimum_os": artifact.minimum_os,
        "inputs": [_signature(spec) for spec in artifact.inputs],
        "outputs": [_signature(spec) for spec in artifact.outputs],
        "operations": contents.operations,
        "delegates": [{"name": name, "operations": operations} for name, operations in contents.delegates],
        "delegated": contents.delegated,
    }


def _signature(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype} [{', '.join(map(str, spec.dims))}]"
