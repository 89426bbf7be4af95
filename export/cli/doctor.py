"""Compare what is installed with what palmtop was tested with, and say what each target needs here."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
import shutil
from typing import Any

from packaging.requirements import Requirement

from ...runtime.backends import get_backend
from ..targets import TARGETS
from .console import Console, print_json, size

HELP = "check this machine: versions, and what each target needs"

# What the tests last ran with. pyproject.toml says what may be installed; this says what is known to work together.
TESTED = {
    "python": "3.11",
    "numpy": "2.3.5",
    "onnxruntime": "1.31.1",
    "tokenizers": "0.23.3",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "onnx": "1.23.2",
    "onnxscript": "0.7.2",
    "coremltools": "9.0",
    "executorch": "1.4.1",
    "torchao": "0.18.0",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # no options


def run(arguments: argparse.Namespace, console: Console) -> int:
    found = diagnose()
    if arguments.json:
        print_json(found)
        return 0 if found["ready"] else 2
    console.say(f"{found['machine']}, Python {found['python']}, free disk {size(found['free_disk'])}")
    console.table(
        ("package", "installed", "tested", ""),
        [
            (entry["package"], entry["installed"] or "-", entry["tested"], entry["remark"])
            for entry in found["packages"]
        ],
    )
    console.say()
    console.table(
        ("target", "export", "execute here"),
        [(entry["target"], entry["export"], entry["execute"]) for entry in found["targets"]],
    )
    return 0 if found["ready"] else 2


def diagnose() -> dict[str, Any]:
    """What is installed here. `ready` is False when an installed package is outside of what palmtop requires."""
    required = _requirements()
    packages = [_package(name, tested, required.get(name)) for name, tested in TESTED.items() if name != "python"]
    targets = []
    for target in TARGETS:
        missing = [name for name in TARGETS[target].packages if _version(name) is None]
        targets.append(
            {
                "target": target,
                "export": "ready" if not missing else f"missing {', '.join(missing)}: pip install 'palmtop[export]'",
                "execute": get_backend(target).missing() or "ready",
            }
        )
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "free_disk": shutil.disk_usage(".").free,
        "packages": packages,
        "targets": targets,
        "ready": all(entry["fits"] for entry in packages),
    }


def _package(name: str, tested: str, requirement: Requirement | None) -> dict[str, Any]:
    installed = _version(name)
    fits = installed is None or requirement is None or requirement.specifier.contains(installed, prereleases=True)
    if installed is None:
        remark = "not installed"
    elif not fits:
        remark = f"palmtop needs {requirement}: pip install '{requirement}'"
    elif installed.split("+")[0] != tested:
        remark = "other than tested"
    else:
        remark = "as tested"
    return {"package": name, "installed": installed, "tested": tested, "fits": fits, "remark": remark}


def _requirements() -> dict[str, Requirement]:
    found = {}
    for text in importlib.metadata.requires("palmtop") or ():
        requirement = Requirement(re.sub(r"\s*;.*$", "", text))
        found[requirement.name] = requirement
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
