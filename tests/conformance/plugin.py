"""pytest plugin: tests that ship in coremltools' wheel execute their predictions through palmtop's interpreter.

Off a Mac those tests convert a model and stop, because `MLModel.predict` raises. With this plugin `predict` runs the
saved package in `palmtop.runtime.mil`, and the values that the tests' authors expect are compared.

Environment: CONFORMANCE_PER=N keeps N parameter sets of each test function and CONFORMANCE_TOTAL=N then keeps N tests
(drawn with a fixed seed, the same in every process); CONFORMANCE_OUT=FILE receives one JSON document with the outcome
of every test, and FILE.collected the number of tests that the sample was drawn from.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import random
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


class _Absent:
    """Anything in a module that is not installed: tests that call it are skipped."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self._name}.{name}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        pytest.skip(f"{self._name} is not installed")


class _AbsentModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self.__name__}.{name}")


# Test modules import these at their top, for a few of their tests.
for _name in ("torchvision", "peft"):
    if importlib.util.find_spec(_name) is None:
        sys.modules[_name] = _AbsentModule(_name)

import coremltools._deps as dependencies  # noqa: E402  (it looks for the modules above)
import coremltools.models.model as model_module  # noqa: E402
import coremltools.models.utils as model_utils  # noqa: E402
from palmtop.runtime.mil import Program  # noqa: E402
from PIL import Image  # noqa: E402

# The tests compare values only where Core ML could run: say that this is a Mac of the newest release they know.
model_utils._macos_version = lambda: (15, 9)
dependencies._IS_MACOS = True

_predictions = 0
_outcomes: dict[str, dict[str, Any]] = {}


def _program(model: Any) -> Program:
    if getattr(model, "_palmtop_program", None) is None:
        model._palmtop_program = Program.load(model.package_path, function=model.function_name)
    return model._palmtop_program


def _predict(self: Any, data: dict[str, Any], state: Any = None) -> dict[str, Any]:
    global _predictions
    if self._spec.WhichOneof("Type") != "mlProgram":
        pytest.skip("not an ML Program")
    self._verify_input_dict(data)  # what coremltools checks before it hands the inputs to Core ML
    _predictions += 1
    program = _program(self)
    outputs = program.predict(data, state=state)
    return {name: _as_coremltools_gives_it(program, name, value) for name, value in outputs.items()}


def _as_coremltools_gives_it(program: Program, name: str, value: Any) -> Any:
    """Images as PIL images, in colour with an opaque alpha channel; no rank 0, which Core ML's interface lacks."""
    if program.output_features[name].kind == "image":
        image = Image.fromarray(value.astype(np.float32) if value.dtype == np.float16 else value)
        return image.convert("RGBA") if image.mode == "RGB" else image
    return value.reshape(1) if isinstance(value, np.ndarray) and value.ndim == 0 else value


model_module.MLModel.predict = _predict
model_module.MLModel.make_state = lambda self: _program(self).new_state()


def pytest_collection_modifyitems(items: list[Any]) -> None:
    kept = [i for i in items if "neuralnetwork" not in i.nodeid and "tensorflow" not in i.nodeid.lower()]
    if "CONFORMANCE_OUT" in os.environ:
        Path(os.environ["CONFORMANCE_OUT"] + ".collected").write_text(str(len(kept)), encoding="utf-8")
    per = int(os.environ.get("CONFORMANCE_PER", "0"))
    if per:
        groups = defaultdict(list)
        for item in kept:
            groups[item.nodeid.split("[")[0]].append(item)
        draw = random.Random(0)
        kept = [i for group in groups.values() for i in (group if len(group) <= per else draw.sample(group, per))]
    total = int(os.environ.get("CONFORMANCE_TOTAL", "0"))
    if 0 < total < len(kept):
        chosen = set(random.Random(1).sample(range(len(kept)), total))
        kept = [item for i, item in enumerate(kept) if i in chosen]
    items[:] = kept


def pytest_collection_finish() -> None:
    """coremltools collects garbage at the end of every conversion, which takes six times as long as the conversion
    with thousands of tests and PyTorch in memory: set aside what is there to stay."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: Any) -> Any:
    before = _predictions
    yield
    item.user_properties.append(("predictions", _predictions - before))


def pytest_runtest_logreport(report: Any) -> None:
    """Runs in the process that reports: the only one, or the controller of pytest-xdist."""
    entry = _outcomes.setdefault(report.nodeid, {"outcome": "passed", "why": "", "predictions": 0})
    if report.when == "call":
        entry["predictions"] += sum(n for name, n in report.user_properties if name == "predictions")
    if hasattr(report, "wasxfail"):
        entry["outcome"], entry["why"] = "xfailed" if report.skipped else "xpassed", report.wasxfail
    elif report.skipped:
        entry["outcome"], entry["why"] = "skipped", report.longrepr[2].removeprefix("Skipped: ")
    elif report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        entry["outcome"], entry["why"] = "failed", (crash.message if crash else str(report.longrepr))[:600]


def pytest_collectreport(report: Any) -> None:
    if report.failed:
        lines = str(report.longrepr).strip().splitlines()
        _outcomes[report.nodeid] = {"outcome": "not collected", "why": lines[-1] if lines else "", "predictions": 0}


def pytest_sessionfinish(session: Any) -> None:
    target = os.environ.get("CONFORMANCE_OUT")
    if target and not hasattr(session.config, "workerinput"):
        Path(target).write_text(json.dumps(_outcomes), encoding="utf-8")
