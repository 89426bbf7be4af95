"""What is in a bundle: sizes, signatures, operations, and what takes them. Nothing is loaded or run."""

from __future__ import annotations

import json
from typing import Any

from .backends import get_backend
from .bundle import Bundle
from .errors import DamagedError
from .manifest import Artifact, TensorSpec


def inspect_bundle(bundle: Bundle) -> dict[str, Any]:
    """The content of a bundle as plain values.

    Returns:
        The manifest's source, task, license and identity; `size` in bytes; `tokenizer` and the `readers` that
        were tried on it; and for each of `artifacts` its
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
        "readers": _readers(bundle),
        "preprocess": manifest.preprocess,
        "postprocess": manifest.postprocess,
        "parity": manifest.parity,
        "artifacts": [_artifact(bundle, artifact) for artifact in manifest.artifacts],
    }


def _readers(bundle: Bundle) -> list[dict[str, Any]]:
    """Which tokenizer readers gave the golden vectors at export; none for bundles without text or made before."""
    spec = bundle.manifest.tokenizer
    path = bundle.root / spec.path / "compatibility.json" if spec is not None else None
    if path is None or not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["readers"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} is not a table of readers: {error!r}. Export the bundle again.") from error


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
        "quantization": artifact.describe_quantization(),
        "minimum_os": artifact.minimum_os,
        "inputs": [_signature(spec) for spec in artifact.inputs],
        "outputs": [_signature(spec) for spec in artifact.outputs],
        "operations": contents.operations,
        "delegates": [{"name": name, "operations": operations} for name, operations in contents.delegates],
        "delegated": contents.delegated,
    }


def _signature(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype} [{', '.join(map(str, spec.dims))}]"
