"""The search finds a small plan that holds, in few trials, and knows when there is none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from palmtop.quantize.scheme import Scheme
from palmtop.quantize.search import Rung, Table, Trial, best, pareto, search

INT4, INT8 = Scheme(4), Scheme(8)


def table(seed: int = 0, weights: int = 12) -> Table:
    """Weights of different sizes whose costs differ by two orders of magnitude."""
    random = np.random.default_rng(seed)
    rungs = {}
    for number in range(weights):
        size, cost = int(random.integers(1000, 50000)), float(10 ** random.uniform(-4.5, -2.5))
        rungs[f"w{number}"] = [Rung(INT4, size, cost), Rung(INT8, 2 * size, cost / 200), Rung(None, 8 * size, 0.0)]
    return Table(rungs)


def executed(costs: Table, bound: float, factor: float = 1.0, spread: float = 0.0, tried: list | None = None):
    """Trials of artifacts whose disagreement is `factor` times what the table says, and a little that never goes."""

    def attempt(choice):
        if tried is not None:
            tried.append(choice)
        agreement = 1 - factor * costs.cost(choice) - spread
        return Trial(choice, agreement, costs.size(choice), agreement >= bound)

    return attempt


def test_costs_and_sizes_add_up():
    one = Table({"a": [Rung(INT4, 10, 0.2), Rung(None, 80, 0.0)], "b": [Rung(INT8, 5, 0.1), Rung(None, 20, 0.0)]})
    choice = {"a": 0, "b": 1}
    assert (one.cost(choice), one.size(choice)) == (0.2, 30)
    assert one.schemes(choice) == {"a": INT4, "b": None}


@pytest.mark.parametrize("seed", range(4))
def test_what_is_chosen_keeps_the_budget_and_is_close_to_the_smallest_there_is(seed):
    small = table(seed, weights=7)
    for budget in (1e-2, 3e-3, 1e-3, 1e-4, 1e-5):
        choice = small.smallest(budget)
        assert small.cost(choice) <= budget
        every = (dict(zip(small.rungs, rungs, strict=True)) for rungs in itertools.product(range(3), repeat=7))
        least = min(small.size(other) for other in every if small.cost(other) <= budget)
        assert small.size(choice) <= 1.25 * least


def test_a_larger_budget_never_needs_many_more_bytes():
    sizes = [table(3, 40).size(table(3, 40).smallest(budget)) for budget in np.geomspace(1e-6, 1, 40)]
    assert all(later <= 1.02 * earlier for earlier, later in itertools.pairwise(sizes))
    assert sizes[0] > 2 * sizes[-1]


def test_everything_and_nothing():
    assert set(table().smallest(1.0).values()) == {0}
    assert table().cost(table().smallest(0.0)) == 0
    assert set(table().smallest(-1.0).values()) == {2}


def test_no_weight_goes_below_where_it_starts():
    start = dict.fromkeys(table().rungs, 1)
    assert set(table().smallest(1.0, start).values()) == {1}
    assert min(table().smallest(1e-5, start).values()) == 1


def test_a_rung_that_costs_more_than_the_one_below_it_is_never_taken():
    odd = Table({"a": [Rung(INT4, 10, 0.1), Rung(INT8, 20, 0.3), Rung(None, 80, 0.0)]})
    assert odd.smallest(0.2) == {"a": 0}
    assert odd.smallest(0.05) == {"a": 2}


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0, 1.6, 6.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_search_lands_just_above_the_bound_in_few_trials(factor, seed):
    costs, bound = table(seed, 40), 0.997
    trials = search(costs, bound, executed(costs, bound, factor), most=7)
    found = best(trials)
    assert found is not None
    assert found.agreement >= bound
    ideal = costs.size(costs.smallest((1 - bound) / factor))
    assert found.size <= 1.1 * ideal
    assert len(trials) <= 7


def test_no_plan_is_executed_twice():
    tried: list = []
    costs = table(1, 40)
    search(costs, 0.997, executed(costs, 0.997, 3.0, tried=tried), most=20)
    assert len({tuple(sorted(choice.items())) for choice in tried}) == len(tried)


def test_when_the_smallest_holds_it_is_the_only_trial():
    trials = search(table(), 0.5, executed(table(), 0.5))
    assert len(trials) == 1
    assert set(trials[0].choice.values()) == {0}


def test_a_bound_that_nothing_meets_ends_at_the_top_of_the_ladders():
    costs = table()
    trials = search(costs, 0.9999, executed(costs, 0.9999, spread=0.01), most=10)
    assert best(trials) is None
    assert costs.cost(trials[-1].choice) == 0
    assert len(trials) <= 10


def test_a_disagreement_that_no_table_explains_does_not_stop_the_search():
    costs = table(2, 40)
    trials = search(costs, 0.997, executed(costs, 0.997, spread=0.001), most=10)
    found = best(trials)
    assert found is not None
    assert found.size <= 1.3 * costs.size(costs.smallest(0.002))


def test_the_pareto_front_is_what_nothing_beats_in_both():
    trials = [
        Trial({}, agreement, size, True)
        for size, agreement in ((10, 0.9), (20, 0.95), (30, 0.94), (20, 0.93), (40, 0.99))
    ]
    assert [(trial.size, trial.agreement) for trial in pareto(trials)] == [(10, 0.9), (20, 0.95), (40, 0.99)]
    assert best([]) is None
