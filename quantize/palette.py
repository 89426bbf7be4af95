"""Tables that weights are picked from: k-means in one dimension, weighted by how much each weight matters."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_ROUNDS = 60


@dataclass
class Palette:
    """Tables (groups, 2^bits), ascending; a group is as many rows of the weight as share a table."""

    tables: torch.Tensor

    def integers(self, values: torch.Tensor) -> torch.Tensor:
        """The place in its table of what is nearest to each of some values (rows, columns)."""
        grouped = values.reshape(len(self.tables), -1).contiguous()
        middles = (self.tables[:, 1:] + self.tables[:, :-1]) / 2
        return torch.searchsorted(middles.contiguous(), grouped).reshape(values.shape).to(values.dtype)

    def values(self, integers: torch.Tensor) -> torch.Tensor:
        """What stands at these places (rows, columns)."""
        grouped = integers.reshape(len(self.tables), -1).long()
        return self.tables.gather(1, grouped).reshape(integers.shape)


def find_palette(matrix: torch.Tensor, rows: int, bits: int, importance: torch.Tensor | None = None) -> Palette:
    """The tables of a matrix (rows, columns) whose picks err least, squares weighted by the columns' importance.

    Lloyd's algorithm on sorted values, from places as dense as the cube root of the weights' own density, which is
    where the best ones lie when there are many (Panter and Dite, 1951). Nothing in it is random.

    Args:
        rows: how many share a table; a divisor of the matrix's.
    """
    count = 2**bits
    groups = len(matrix) // rows
    values, order = matrix.reshape(groups, -1).double().sort(dim=1)
    mass = torch.ones_like(values)
    if importance is not None and float(importance.max()) > 0:
        # Columns that calibration never saw still count for something: a later input may use them.
        floored = importance.double().clamp(min=1e-3 * float(importance.max()))
        mass = floored.expand(len(matrix), -1).reshape(groups, -1).gather(1, order)
    zero = torch.zeros(groups, 1, dtype=torch.float64)
    masses = torch.cat([zero, mass.cumsum(1)], 1)
    sums = torch.cat([zero, (mass * values).cumsum(1)], 1)
    tables = _start(values, count)
    for _ in range(_ROUNDS):
        middles = ((tables[:, 1:] + tables[:, :-1]) / 2).contiguous()
        places = torch.searchsorted(values, middles)
        edges = torch.cat([zero.long(), places, torch.full_like(zero, values.shape[1]).long()], 1)
        weights = masses.gather(1, edges).diff(dim=1)
        means = sums.gather(1, edges).diff(dim=1) / weights.clamp(min=1e-300)
        moved = torch.where(weights > 0, means, tables).sort(dim=1).values
        if torch.equal(moved, tables):
            break
        tables = moved
    few, exact = _few(values, count)
    return Palette(torch.where(few, exact, tables).float().to(matrix.dtype))


def _few(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each group has no more different values than its table has places; the table of just those."""
    ranks = torch.nn.functional.pad((values.diff(dim=1) > 0).long().cumsum(1), (1, 0))
    tables = values[:, -1:].repeat(1, count).scatter_(1, ranks.clamp(max=count - 1), values)
    return ranks[:, -1:] < count, tables


def _start(values: torch.Tensor, count: int) -> torch.Tensor:
    """First tables, from sorted values (groups, N)."""
    bins = min(values.shape[1], 16 * count)
    ends = torch.linspace(0, values.shape[1] - 1, bins + 1).long()
    edges = values[:, ends]
    widths = edges.diff(dim=1).clamp(min=0)
    # Each bin has as many weights: their density is 1 / width, and the cube root of it over the width is this.
    dense = (widths ** (2 / 3)).cumsum(1)
    total = dense[:, -1:]
    wanted = (torch.arange(count, dtype=torch.float64) + 0.5) / count * total
    place = torch.searchsorted(dense, wanted.contiguous()).clamp(max=bins - 1)
    return (edges.gather(1, place) + edges.gather(1, place + 1)) / 2
