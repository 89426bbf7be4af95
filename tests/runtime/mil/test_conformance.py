"""A sample of coremltools' own operator tests passes when their predictions are executed by the interpreter."""

import pytest

pytest.importorskip("coremltools", reason="coremltools converts the models of its tests")

from ...conformance.run import explain, run


@pytest.mark.timeout(900)
def test_a_stratified_sample_of_coremltools_operator_tests_passes():
    """One parameter set of each of 300 test functions; `make conformance` runs them all."""
    outcomes = run("ops", per=1, total=300)
    unexplained = [(test, outcomes[test]["why"]) for test, why in explain(outcomes).items() if why is None]
    assert not unexplained
    assert sum(1 for o in outcomes.values() if o["outcome"] == "passed" and o["predictions"]) > 120
