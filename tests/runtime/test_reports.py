"""A report written into a bundle is read back as what was measured."""

import json
import math

import pytest
from palmtop.runtime.cause import Cause
from palmtop.runtime.parity import Agreement, Bound, Measure
from palmtop.runtime.reports import ArtifactReport, Report

MEASURES = {
    "fp32": Measure("logits", 9, 3, 2.11e-05, 1.38e-06, 0.9999987, 0, "batch of 5", 0.9999991, Bound(1e-4, 1e-5)),
    "int8": Measure("logits", 9, 3, 0.0211, 0.00138, 0.9912, 0, "one word", 0.998, Bound(math.inf, math.inf, 0.995)),
    "without a bound": Measure("logits", 9, 3, 0.0211, 0.00138, 0.9912, 0, "one word"),
    "NaN": Measure("logits", 9, 3, math.inf, math.inf, math.nan, 7, "truncated", 0.0, Bound(1e-4, 1e-5)),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_report_survives_json(name):
    measure = MEASURES[name]
    cause = Cause("softmax_3", "softmax", "encoder.layer.1", "overflows", "7e4 of 65504", {"encoder.layer.1": 7e4})
    first = ArtifactReport(
        "onnx", "onnx/model.onnx", "fp16", "passed" if measure.passed else "failed", "ONNX Runtime 1.31.1", cases=9
    )
    first.measures, first.cause, first.skipped = [measure], cause, ["long"]
    first.agreement = Agreement(same=8, total=9, decided=8, decided_same=8, least=0.8)
    second = ArtifactReport("coreml", "coreml/model.mlpackage", "fp32", "not executed", reason="no interpreter")
    report = Report("eager PyTorch, fp32, unpatched", [first, second])

    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    read = Report.from_json(written)

    assert read.to_json() == written
    assert read.passed == report.passed
    assert read.artifacts[0].problems == first.problems
    assert read.artifacts[0].measures[0].found() == measure.found()


@pytest.mark.parametrize("damage", [lambda data: data.pop("reference"), lambda data: data["artifacts"][0].pop("cases")])
def test_what_is_no_report_is_not_read(damage):
    data = Report("eager", [ArtifactReport("onnx", "onnx/model.onnx", "fp32", "passed")]).to_json()
    damage(data)
    with pytest.raises((KeyError, TypeError)):
        Report.from_json(data)
