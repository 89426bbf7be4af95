"""An `.mlpackage` on disk, byte for byte the same for the same model.

coremltools writes a package through a temporary folder (every weight twice) and names its items with random
identifiers; here the weights are written in place, once, and the identifiers derive from the artifact's identity.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from ...runtime.manifest import canonical_json

_AUTHOR = "com.apple.CoreML"
_MODEL = f"{_AUTHOR}/model.mlmodel"
_WEIGHTS = f"{_AUTHOR}/weights"
_NAMESPACE = uuid.UUID("7f1c6a52-5d0e-5a36-9a3f-0f3d6f7f2b61")  # ours: items are named within it

# User-defined metadata, as the runtime reads it back (runtime/backends/coreml.py).
IDENTITY_KEY = "palmtop.identity"
MODULES_KEY = "palmtop.modules"


def weights_folder(package: Path) -> Path:
    """Where the weights of a package lie. Made, with the folders above it, when missing."""
    folder = package / "Data" / _WEIGHTS
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_package(package: Path, spec: Any, identity: str, metadata: dict[str, str]) -> None:
    """Complete a package whose weights are in `weights_folder` already.

    Args:
        spec: the Core ML `Model` message.
        identity: the manifest's identity, stored as user-defined metadata.
        metadata: more user-defined metadata; no dates, so that packages can be compared.
    """
    entries = spec.description.metadata.userDefined
    entries.clear()
    for key, value in sorted({**metadata, IDENTITY_KEY: identity}.items()):
        entries[key] = value
    model = package / "Data" / _MODEL
    model.parent.mkdir(parents=True, exist_ok=True)
    model.write_bytes(spec.SerializeToString(deterministic=True))
    items = {_MODEL: ("model.mlmodel", "CoreML Model Specification")}
    if any((package / "Data" / _WEIGHTS).iterdir()):
        items[_WEIGHTS] = ("weights", "CoreML Model Weights")
    identifiers = {path: str(uuid.uuid5(_NAMESPACE, f"{identity}/{path}")).upper() for path in items}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            identifiers[path]: {"author": _AUTHOR, "description": description, "name": name, "path": path}
            for path, (name, description) in items.items()
        },
        "rootModelIdentifier": identifiers[_MODEL],
    }
    (package / "Manifest.json").write_text(canonical_json(manifest), encoding="utf-8")


def pack_modules(module_of: dict[str, str]) -> str:
    """MIL value name -> PyTorch module path, as compact JSON grouped by module."""
    by_module: dict[str, list[str]] = {}
    for name, module in module_of.items():
        by_module.setdefault(module, []).append(name)
    return json.dumps(by_module, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
