"""docs/adding-a-format.md is right: two modules and two lines add a format to the whole of palmtop."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from palmtop.export import targets
from palmtop.export.targets import Entry, Target, constant_axes, narrow, requested_axes
from palmtop.runtime import backends
from palmtop.runtime.backends import Backend, Contents
from palmtop.runtime.manifest import Artifact

# A real format that palmtop does not have: PyTorch's own .pt2 archive, executed by PyTorch.


def plan(captured, options):
    axes = requested_axes(captured, options)
    return Artifact(
        target="pt2",
        path="pt2/model.pt2",
        precision=options.precision,
        inputs=narrow(captured.inputs, axes),
        outputs=narrow(captured.outputs, axes),
    )


def lower(captured, artifact, identity: str, path: Path) -> None:
    captured = captured.specialize(constant_axes(captured, artifact))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(captured.private_program(), path, extra_files={"identity": identity})


class Pt2Runner:
    def __init__(self, path: Path, artifact: Artifact, threads: int | None):
        extra = {"identity": ""}
        self._module = torch.export.load(path, extra_files=extra).module()
        self.identity = extra["identity"]
        self.engine = f"PyTorch {torch.__version__}"
        self._outputs = [spec.name for spec in artifact.outputs]

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self._module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        return {name: value.numpy() for name, value in zip(self._outputs, results, strict=True)}


@pytest.fixture
def pt2(monkeypatch):
    """The two modules and the two lines."""
    target, backend = types.ModuleType("pt2"), types.ModuleType("pt2")
    target.TARGET = Target("pt2", plan, lambda captured, artifact: [], lower)
    contents = Contents({"graph": 1})
    backend.BACKEND = Backend("pt2", Pt2Runner, missing=lambda: None, contents=lambda path: contents)
    monkeypatch.setitem(sys.modules, "palmtop.export.targets.pt2", target)
    monkeypatch.setitem(sys.modules, "palmtop.runtime.backends.pt2", backend)
    monkeypatch.setitem(targets.TARGETS, "pt2", Entry("pt2", ("torch",)))
    monkeypatch.setitem(backends.BACKENDS, "pt2", "pt2")


def test_a_new_format_is_exported_verified_run_and_inspected(pt2, palmtop, checkpoint, tmp_path):
    bundle = tmp_path / "new.bundle"
    ran = palmtop("export", checkpoint(), "-o", bundle, "--to", "pt2,onnx", "--json")
    assert ran.code == 0
    assert [entry["status"] for entry in ran.json["parity"]["artifacts"]] == ["passed", "passed"]
    assert palmtop("verify", bundle, "--target", "pt2").code == 0
    assert "graph 1" in palmtop("inspect", bundle).err
    ran = palmtop("run", bundle, "wake me up", "--target", "all", "--json")
    first, second = ran.json["results"]["pt2"], ran.json["results"]["onnx"]
    assert [label["label"] for label in first[0]] == [label["label"] for label in second[0]]


def test_a_new_format_that_cannot_run_here_is_never_called_passed(pt2, palmtop, checkpoint, tmp_path, monkeypatch):
    module = sys.modules["palmtop.runtime.backends.pt2"]
    absent = dataclasses.replace(module.BACKEND, missing=lambda: "PyTorch is not here: pip install torch")
    monkeypatch.setattr(module, "BACKEND", absent)
    bundle = tmp_path / "new.bundle"
    ran = palmtop("export", checkpoint(), "-o", bundle, "--to", "pt2,onnx", "--json")
    assert ran.code == 0
    assert [entry["status"] for entry in ran.json["parity"]["artifacts"]] == ["not executed", "passed"]
    assert json.loads((bundle / "manifest.json").read_text())["parity"]["artifacts"]["pt2"]["status"] == "not executed"
    assert palmtop("verify", bundle, "--target", "onnx").code == 0
    ran = palmtop("verify", bundle, "--target", "pt2")
    assert ran.code == 2
    assert "pip install torch" in ran.err
