"""What the tests of the export share: tiny checkpoints, one finished bundle, and the command line in this process."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from palmtop.export import export_checkpoint
from palmtop.export.build import Result
from palmtop.export.cli import main

from ..support.tiny import tiny_checkpoint
from .quantizing import CONFIG

CARD = """---
license: apache-2.0
language: [en, fr, ko]
---
# Tiny intents

What it does.

## Training data

Sentences that nobody said.

### Where they came from

Made up for a test.

## How to use

    pipeline(...)

## Bias, risks and limitations

It favours short sentences.
"""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """`checkpoint("bert", "fill-mask")`: a folder with that tiny checkpoint, made once; not to be altered."""
    made: dict[str, Path] = {}

    def make(model_type: str = "bert", task: str = "text-classification", **options) -> Path:
        key = repr((model_type, task, sorted(options.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp("checkpoint") / f"tiny-{model_type}"
            made[key] = tiny_checkpoint(folder, model_type, task, **options)
            (folder / "README.md").write_text(CARD, encoding="utf-8")
        return made[key]

    return make


@pytest.fixture
def copy(checkpoint, tmp_path) -> Callable[..., Path]:
    """`copy("bert", "fill-mask")`: a copy of that tiny checkpoint, to be altered."""

    def make(*arguments, **options) -> Path:
        folder = tmp_path / "checkpoint"
        shutil.copytree(checkpoint(*arguments, **options), folder)
        return folder

    return make


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Alter a JSON file: `change` alters its content in place, or returns another."""
    content = json.loads(path.read_text(encoding="utf-8"))
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed), encoding="utf-8")


@pytest.fixture(scope="session")
def exported(checkpoint, tmp_path_factory) -> Result:
    """A tiny classifier exported to all three targets; its bundle is not to be altered."""
    return export_checkpoint(checkpoint(), tmp_path_factory.mktemp("exported") / "intents.bundle")


@pytest.fixture(scope="session")
def classifier(checkpoint) -> Path:
    """A classifier with weights that there is something to quantize of; not to be altered."""
    return checkpoint("bert", "text-classification", config=CONFIG)


@pytest.fixture(scope="session")
def fp32(classifier, tmp_path_factory) -> Path:
    """It as it is, in ONNX; not to be altered."""
    return export_checkpoint(classifier, tmp_path_factory.mktemp("fp32") / "full.bundle", to=["onnx"]).path


@pytest.fixture
def bundle(exported, tmp_path) -> Path:
    """A copy of the exported bundle, to be altered."""
    return Path(shutil.copytree(exported.path, tmp_path / "intents.bundle"))


@dataclass(frozen=True)
class Ran:
    """What a command did: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


@pytest.fixture
def palmtop(capsys) -> Callable[..., Ran]:
    """`palmtop("verify", path)`: the command line, run in this process, whose settings are put back afterwards."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        handler, level = signal.getsignal(signal.SIGTERM), logging.root.manager.disable
        try:
            with warnings.catch_warnings():
                code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # --help and --version
            code = int(leaving.code or 0)
        finally:
            signal.signal(signal.SIGTERM, handler)
            logging.disable(level)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
