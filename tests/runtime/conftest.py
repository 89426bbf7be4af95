"""Tiny checkpoints, made once a test session."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support.tiny import tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """`checkpoint("bert", "fill-mask")`: a folder with that tiny checkpoint; the options of `tiny_checkpoint`."""
    made: dict[str, Path] = {}

    def make(model_type: str, task: str, **options) -> Path:
        key = repr((model_type, task, sorted(options.items())))
        if key not in made:
            made[key] = tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), model_type, task, **options)
        return made[key]

    return make
