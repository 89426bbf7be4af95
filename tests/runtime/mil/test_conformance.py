"""A sample of coremltools' own operator tests passes when their predictions are executed by the interpreter."""

import sys

import pytest

pytest.importorskip("coremltools", reason="coremltools converts the models of its tests")

from ...conformance import run as conformance
from ...conformance.run import explain, report, run

KNOWN = "converters/mil/test_x.py::TestSliceByIndex::test_efficient_type_inference[a]"


def outcome(kind, why="", predictions=0):
    return {"outcome": kind, "why": why, "predictions": predictions}


@pytest.mark.timeout(900)
def test_a_stratified_sample_of_coremltools_operator_tests_passes():
    """One parameter set of each of 300 test functions; `make conformance` runs them all."""
    outcomes = run("ops", per=1, total=300)
    unexplained = [(test, outcomes[test]["why"]) for test, why in explain(outcomes).items() if why is None]
    assert not unexplained
    assert sum(1 for o in outcomes.values() if o["outcome"] == "passed" and o["predictions"]) > 120


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ({"a.py::test_1": outcome("passed", predictions=1), "a.py::test_2": outcome("skipped", "no Mac")}, 0),
        ({KNOWN: outcome("failed", "assert 0.011 < 0.01")}, 0),
        ({KNOWN: outcome("failed", "ExecutionError: operation y (slice_by_index)")}, 1),
        ({KNOWN: outcome("failed", "assert 0.011 < 0.01"), "a.py::test_1": outcome("failed", "1 != 2")}, 1),
        ({"a.py": outcome("not collected", "ImportError: no module")}, 1),
        ({}, 1),
    ],
)
def test_the_run_ends_with_1_unless_every_failure_has_a_reason(monkeypatch, outcomes, code):
    monkeypatch.setattr(conformance, "execute", lambda *_, **__: (outcomes, len(outcomes)))
    monkeypatch.setattr(sys, "argv", ["run.py", "--no-write"])
    assert conformance.main() == code


def test_the_page_lists_each_failure_with_its_reason_or_message_and_no_path_of_the_machine():
    page = report(
        {
            "b.py::test_2": outcome("failed", f"{conformance.wheel()}/x.py: 1 != 2\nmore"),
            KNOWN: outcome("failed", "assert 0.011 < 0.01"),
            "b.py::test_3": outcome("skipped", "z"),
            "b.py::test_1": outcome("skipped", "y"),
        },
        "ops",
        collected=40,
    )
    assert "A sample of 4 of the 40 tests, with coremltools " in page
    assert "0 passed, 2 failed, 2 skipped" in page
    assert "**Unexplained** (1)\n\n- `b.py::test_2`: coremltools/x.py: 1 != 2\n" in page
    assert "less than 10 ms" in page
    assert page.index("| 1 | y |") < page.index("| 1 | z |")
    assert str(conformance.wheel()) not in page
