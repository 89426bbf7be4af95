"""Other tools, each in a virtual environment of its own: what they need and what palmtop needs do not go together.

The environments lie under build/peers, which git ignores, and are made on first use with pip as it is configured here.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_CACHE = _HERE.parent / "build" / "peers"

# In order: torch first and by its exact version (see the Makefile), the one that palmtop is measured with.
# optimum-onnx 0.1.0 is the last release, and asks for a transformers below 4.58; its other needs are not that strict.
REQUIREMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "optimum": (
        ("torch==2.13.0",),
        ("optimum-onnx==0.1.0", "optimum==2.1.0", "transformers==4.57.6", "onnx==1.19.1", "onnxruntime==1.31.1"),
    ),
}


def python(name: str) -> Path:
    """The interpreter of a peer's environment, which is built when it is missing.

    Raises:
        subprocess.CalledProcessError: pip cannot install it.
    """
    wanted = REQUIREMENTS[name]
    digest = hashlib.sha256(json.dumps([wanted, sys.version_info[:2]]).encode()).hexdigest()[:10]
    folder = _CACHE / f"{name}-{digest}"
    interpreter = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"Installing {name} into {os.path.relpath(folder)} (about two minutes, 1.5 GB)", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        for group in wanted:
            command = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *group]
            subprocess.run(command, check=True, stdout=sys.stderr)
        (folder / "complete").touch()
    return interpreter


def run(name: str, script: str, arguments: Sequence[str | Path]) -> dict:
    """What a script of this folder, run in a peer's environment, prints as one JSON document on its last line.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    command = [str(python(name)), str(_HERE / script), *map(str, arguments)]
    # Where it starts nothing lies that could hide the peer's packages.
    done = subprocess.run(command, capture_output=True, text=True, cwd=_CACHE, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} failed in the environment of {name}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
