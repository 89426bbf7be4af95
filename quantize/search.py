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

import numpy as np

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

        The step that saves most disagreement for a byte comes first, until the costs are within the budget; then
        single weights, and pairs of them, change as long as that saves bytes. When even the top of all ladders costs
        more, that is what is given.

        Args:
            start: rungs below which no weight goes (a preset's); None: the lowest.
        """
        floor = dict(start) if start is not None else dict.fromkeys(self.rungs, 0)
        choice = dict(floor)
        total = self.cost(choice)
        heap: list[tuple[float, str, int, int]] = []
        for name in self.rungs:
            self._offer(heap, name, choice[name])
        while total > most and heap:
            _, name, before, rung = heapq.heappop(heap)
            if choice[name] != before:
                continue  # offered from a rung that was left since
            total += self.rungs[name][rung].cost - self.rungs[name][before].cost
            choice[name] = rung
            self._offer(heap, name, rung)
        if total <= most:
            self._improve(choice, most, floor)
        return choice

    def _offer(self, heap: list[tuple[float, str, int, int]], name: str, at: int) -> None:
        here = self.rungs[name][at]
        for rung in range(at + 1, len(self.rungs[name])):
            there = self.rungs[name][rung]
            gain, bytes_more = here.cost - there.cost, there.size - here.size
            if gain > 0:
                heapq.heappush(heap, (-gain / max(bytes_more, 1), name, at, rung))

    def _improve(self, choice: dict[str, int], most: float, floor: Mapping[str, int]) -> None:
        """Change the one or two weights that save most bytes within the budget, until none do. In place."""
        for _ in range(4 * len(choice)):
            moves = [
                (name, rung) for name, rungs in self.rungs.items() for rung in range(floor[name], len(rungs))
            ]  # staying where it is is a move too: then the pair is a single one
            costs = np.array([self.rungs[name][rung].cost - self._at(choice, name).cost for name, rung in moves])
            sizes = np.array([self.rungs[name][rung].size - self._at(choice, name).size for name, rung in moves])
            owners = np.array([place for place, name in enumerate(self.rungs) for _ in self.rungs[name][floor[name] :]])
            fits = costs[:, None] + costs[None, :] <= most - self.cost(choice)
            fits &= owners[:, None] != owners[None, :]
            saved = np.where(fits, sizes[:, None] + sizes[None, :], 0)
            first, second = np.unravel_index(int(saved.argmin()), saved.shape)
            if saved[first, second] >= 0:
                return
            changed = choice | dict((moves[first], moves[second]))
            if self.cost(changed) > most:  # by the last digit of the sum
                return
            choice.update(changed)

    def _at(self, choice: Mapping[str, int], name: str) -> Rung:
        return self.rungs[name][choice[name]]


@dataclass
class Trial:
    """A plan that was executed: its agreement is the least of all artifacts'; size in bytes, of all weights."""

    choice: dict[str, int]
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
