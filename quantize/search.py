"""The search for the smallest plan that holds an agreement.

Every weight has a ladder of schemes, from the smallest up to "as it is". What a rung costs is measured once, weight by
weight: the disagreement of the model's outputs when that weight alone is stored so. Errors of different weights are
nearly independent, so their costs add up; a plan is the cheapest way, in bytes, to stay within a total. How far the sum
is from what the executed artifacts show is learned from each trial, and the next plan takes it into account.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .scheme import Scheme

Ladder = tuple[Scheme | None, ...]  # smallest first; None, the last, is the weight as it is


@dataclass(frozen=True)
class Rung:
    """A weight in one scheme (None: as it is): its bytes, and the disagreement (1 - agreement) that it alone causes."""

    scheme: Scheme | None
    size: int
    cost: float


@dataclass
class Table:
    """The rungs of every weight, smallest first."""

    rungs: Mapping[str, Sequence[Rung]]

    def cost(self, choice: Mapping[str, int]) -> float:
        return sum(self.rungs[name][rung].cost for name, rung in choice.items())

    def size(self, choice: Mapping[str, int]) -> int:
        return sum(self.rungs[name][rung].size for name, rung in choice.items())

    def schemes(self, choice: Mapping[str, int]) -> dict[str, Scheme | None]:
        return {name: self.rungs[name][rung].scheme for name, rung in choice.items()}

    def smallest(self, most: float, start: Mapping[str, int] | None = None) -> dict[str, int]:
        """The rung of each weight so that costs add up to no more than `most`, with few bytes.

        Greedy: the step that saves most disagreement for a byte comes first; afterwards, steps that turned out not to
        be needed are taken back. When even the top of all ladders costs more, that is what is given.

        Args:
            start: rungs below which no weight goes (a preset's); None: the lowest.
        """
        choice = dict(start) if start is not None else dict.fromkeys(self.rungs, 0)
        total = self.cost(choice)
        heap: list[tuple[float, str, int]] = []
        for name in self.rungs:
            self._offer(heap, name, choice[name])
        taken: list[tuple[str, int, int]] = []
        while total > most and heap:
            _, name, rung = heapq.heappop(heap)
            before = choice[name]
            if rung <= before:
                continue
            total += self.rungs[name][rung].cost - self.rungs[name][before].cost
            choice[name] = rung
            taken.append((name, before, rung))
            self._offer(heap, name, rung)
        for name, before, rung in taken:
            back = self.rungs[name][before].cost - self.rungs[name][rung].cost
            if choice[name] == rung and total + back <= most:
                choice[name] = before
                total += back
        return choice

    def _offer(self, heap: list[tuple[float, str, int]], name: str, at: int) -> None:
        here = self.rungs[name][at]
        for rung in range(at + 1, len(self.rungs[name])):
            there = self.rungs[name][rung]
            gain, bytes_more = here.cost - there.cost, there.size - here.size
            if gain > 0:
                heapq.heappush(heap, (-gain / max(bytes_more, 1), name, rung))


@dataclass
class Trial:
    """A plan that was executed: its agreement is the least of all artifacts'; size in bytes, of all weights."""

    choice: dict[str, int]
    predicted: float
    agreement: float
    size: int
    passed: bool
    details: dict = field(default_factory=dict)


def search(
    table: Table,
    bound: float,
    attempt: Callable[[dict[str, int]], Trial],
    *,
    start: Mapping[str, int] | None = None,
    most: int = 6,
) -> list[Trial]:
    """Try plans until the smallest that passes is found, as far as trials go.

    Args:
        bound: the least agreement.
        attempt: executes a plan on every artifact.
        start: rungs below which no weight goes.
        most: trials.

    Returns:
        All trials, in order. The best is the smallest that passed, if any did.
    """
    allowed = 1 - bound
    budget = allowed
    trials: list[Trial] = []
    tried: set[tuple[tuple[str, int], ...]] = set()
    low, high = 0.0, float("inf")  # budgets known to pass, known to fail
    while len(trials) < most:
        choice = table.smallest(budget, start)
        key = tuple(sorted(choice.items()))
        if key in tried:
            break
        tried.add(key)
        trial = attempt(choice)
        trials.append(trial)
        spent = table.cost(choice)
        at_bottom = choice == table.smallest(float("inf"), start)
        at_top = choice == table.smallest(-1.0, start)
        if trial.passed:
            if at_bottom:
                break
            low = max(low, spent)
        else:
            if at_top:
                break
            high = min(high, spent)
        measured = 1 - trial.agreement
        ratio = spent / measured if measured > 0 and spent > 0 else 1.0
        budget = 0.95 * allowed * ratio
        if not low < budget < high:
            budget = (low + high) / 2 if high < float("inf") else 2 * max(low, allowed)
        if high < float("inf") and (high - low) < 0.1 * high:
            break
    return trials


def best(trials: Sequence[Trial]) -> Trial | None:
    """The smallest that passed, else None."""
    passed = [trial for trial in trials if trial.passed]
    return min(passed, key=lambda trial: trial.size) if passed else None


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other beats in both size and agreement, by size."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda one: (one.size, -one.agreement)):
        if not found or trial.agreement > found[-1].agreement:
            found.append(trial)
    return found
