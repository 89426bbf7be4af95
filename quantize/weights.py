"""Integers and scales of a weight, computed once for every format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .palette import Palette, find_palette
from .scheme import Scheme

# Kernels without VNNI add two products of an 8-bit input (0..255) and an 8-bit weight in 16 bits, saturating: two
# neighbours whose sum stays within this bound can never get there (255 * 128 < 2^15).
PAIR = 128
# Fractions of the largest weight tried as the end of the integers' range.
_ENDS = tuple(1 - 0.02 * step for step in range(16))
# Columns that are rounded before what they leave to make up for goes to all columns after them.
_STRIDE = 128


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as targets store it: weight[row, column] = (integers - zero_points) * scales of its block.

    Of palettes, weight[row, column] = palette[group of the row, integers].

    scheme: how it was made. transposed: the parameter itself lies as (columns, rows).
    integers: (rows, columns) int8, rows being outputs or table entries, columns the inputs that are summed over; of
        palettes uint8, places in the table.
    scales: (rows, blocks) fp32, blocks being 1 but for block-wise schemes. zero_points: the same shape, int8, or None.
    shape: of the parameter.
    palette: (groups, 2^bits) fp32, ascending; rows / groups neighbouring rows share a table. None of linear schemes.
    """

    scheme: Scheme
    integers: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    shape: tuple[int, ...]
    transposed: bool = False
    palette: torch.Tensor | None = None

    @property
    def block(self) -> int:
        """How many columns share a scale."""
        return self.integers.shape[1] // self.scales.shape[1]

    def dequantize(self) -> torch.Tensor:
        """The weight in fp32, in the parameter's layout."""
        if self.palette is not None:
            return self._in_layout(Palette(self.palette).values(self.integers))
        wide = self.integers.float().unflatten(1, (-1, self.block))
        if self.zero_points is not None:
            wide = wide - self.zero_points.float().unsqueeze(-1)
        return self._in_layout((wide * self.scales.unsqueeze(-1)).flatten(1))

    def _in_layout(self, matrix: torch.Tensor) -> torch.Tensor:
        return (matrix.t() if self.transposed else matrix.reshape(self.shape)).contiguous()

    @property
    def bytes(self) -> int:
        """About what it takes in a file: integers, fp32 scales, zero points; of palettes, the tables in fp16."""
        if self.palette is not None:
            return self.integers.numel() * self.scheme.bits // 8 + 2 * self.palette.numel()
        zeros = self.scales.numel() * self.scheme.bits // 8 if self.zero_points is not None else 0
        return self.integers.numel() * self.scheme.bits // 8 + 4 * self.scales.numel() + zeros


def fitting(scheme: Scheme, columns: int) -> Scheme:
    """The scheme with the largest block, a power of two from 16 on, that divides the columns; else a scale a row."""
    if scheme.granularity != "block":
        return scheme
    block = scheme.block or 32
    while block >= 16 and columns % block:
        block //= 2
    if columns % block or block < 16:
        return Scheme(scheme.bits, "channel", None, scheme.symmetric, scheme.form, scheme.activations)
    return Scheme(scheme.bits, "block", block, scheme.symmetric, scheme.form, scheme.activations)


@dataclass
class Grid:
    """The integers that a block of columns may take: `low`..`high` times `scale`, from `zero`; all (rows, 1)."""

    scale: torch.Tensor
    zero: torch.Tensor | None
    low: int
    high: int

    def integers(self, values: torch.Tensor) -> torch.Tensor:
        found = torch.round(values / self.scale)
        return torch.clamp(found if self.zero is None else found + self.zero, self.low, self.high)

    def expand(self, rows: int) -> Grid:
        """The same grid for so many rows."""
        zero = None if self.zero is None else self.zero.expand(rows, 1)
        return Grid(self.scale.expand(rows, 1), zero, self.low, self.high)

    def values(self, integers: torch.Tensor) -> torch.Tensor:
        return (integers if self.zero is None else integers - self.zero) * self.scale


def find_grid(block: torch.Tensor, scheme: Scheme, importance: torch.Tensor | None = None) -> Grid:
    """The grid of a block (rows, columns) whose rounding errs least, squares weighted by the columns' importance."""
    high = 2 ** (scheme.bits - 1) - 1
    low = -high - 1 if scheme.bits < 8 else -high
    weight = torch.ones(block.shape[1], dtype=block.dtype) if importance is None else importance
    most = block.amax(1, keepdim=True)
    least = block.amin(1, keepdim=True)
    best: Grid | None = None
    best_error = torch.full((len(block), 1), torch.inf, dtype=block.dtype)
    ends = _ENDS if scheme.bits < 8 else (1.0, 0.96)
    for end in ends:
        grid = _grid(least * end, most * end, scheme, low, high)
        error = ((grid.values(grid.integers(block)) - block).square() * weight).sum(1, keepdim=True)
        if best is None:
            best, best_error = grid, error
            continue
        better = error < best_error
        best.scale = torch.where(better, grid.scale, best.scale)
        if best.zero is not None and grid.zero is not None:
            best.zero = torch.where(better, grid.zero, best.zero)
        best_error = torch.where(better, error, best_error)
    assert best is not None
    return best


def _grid(least: torch.Tensor, most: torch.Tensor, scheme: Scheme, low: int, high: int) -> Grid:
    if scheme.symmetric:
        scale = torch.maximum(most.abs(), least.abs()) / high
        return Grid(_storable(scale, scheme), None, low, high)
    least, most = least.clamp(max=0), most.clamp(min=0)
    scale = _storable((most - least) / (high - low), scheme)
    return Grid(scale, torch.clamp(torch.round(low - least / scale), low, high), low, high)


def _storable(scale: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Scales that every format holds as they are: of 4-bit blocks XNNPACK keeps 8 significant bits (bfloat16)."""
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    kind = torch.bfloat16 if scheme.bits == 4 and scheme.granularity == "block" else torch.float32
    return scale.to(kind).to(scale.dtype)


def quantize(
    matrix: torch.Tensor,
    scheme: Scheme,
    shape: tuple[int, ...],
    transposed: bool = False,
    hessian: torch.Tensor | None = None,
) -> QuantizedWeight:
    """Integers and scales of a (rows, columns) matrix.

    Args:
        hessian: (columns, columns), the sum of x x^T over the layer's inputs x; with it, weights are rounded one column
            after the other, those to come making up for the error so far (GPTQ, arXiv:2210.17323); None: to nearest.
    """
    if hessian is not None and not bool(torch.isfinite(hessian).all()):
        hessian = None  # inputs so large that their squares are beyond fp32
    work = matrix.detach().double() if hessian is not None else matrix.detach().float()
    if scheme.form == "palette":
        return _picked(work, scheme, shape, transposed, hessian)
    scheme = fitting(scheme, matrix.shape[1])
    integers, scales, zeros = _rows(work, scheme, hessian)
    return QuantizedWeight(
        scheme,
        integers.to(torch.int8).contiguous(),
        scales.float().contiguous(),
        None if zeros is None else zeros.to(torch.int8).contiguous(),
        tuple(shape),
        transposed,
    )


def _picked(
    work: torch.Tensor, scheme: Scheme, shape: tuple[int, ...], transposed: bool, hessian: torch.Tensor | None
) -> QuantizedWeight:
    rows = {"tensor": len(work), "channel": 1, "block": scheme.block or 1}[scheme.granularity]
    if len(work) % rows:
        rows, scheme = len(work), dataclasses.replace(scheme, granularity="tensor", block=None)
    palette = find_palette(work, rows, scheme.bits, None if hessian is None else hessian.diagonal())
    if hessian is None:
        integers = palette.integers(work)
    else:
        integers = _gptq(work, hessian, work.shape[1], lambda part, importance: palette)
    ones = torch.ones(len(work), 1)
    tables = palette.tables.float().contiguous()
    return QuantizedWeight(scheme, integers.to(torch.uint8).contiguous(), ones, None, tuple(shape), transposed, tables)


def _rows(
    work: torch.Tensor, scheme: Scheme, hessian: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    block = scheme.block or work.shape[1]
    # Only symmetric weights meet 8-bit inputs in the kernels that add in 16 bits.
    paired = scheme.bits == 8 and scheme.symmetric and scheme.activations != "none"
    grids: list[Grid] = []

    def find(part: torch.Tensor, importance: torch.Tensor | None) -> Grid:
        if scheme.granularity == "tensor":
            spread = None if importance is None else importance.repeat(len(part))
            grids.append(find_grid(part.reshape(1, -1), scheme, spread).expand(len(part)))
        else:
            grids.append(find_grid(part, scheme, importance))
        if paired:
            _widen(grids[-1], part, scheme.granularity == "tensor")
        return grids[-1]

    if hessian is None:
        integers = torch.cat([find(part, None).integers(part) for part in work.split(block, 1)], 1)
        if paired:
            _limit_pairs(integers)
    else:
        integers = _gptq(work, hessian, block, find, paired)
    scales = torch.cat([grid.scale for grid in grids], 1)
    zeros = None if scheme.symmetric else torch.cat([grid.zero for grid in grids if grid.zero is not None], 1)
    return integers, scales, zeros


def _gptq(
    work: torch.Tensor,
    hessian: torch.Tensor,
    block: int,
    find: Callable[[torch.Tensor, torch.Tensor], Grid | Palette],
    paired: bool = False,
) -> torch.Tensor:
    """Round column after column; `find` gives the grid of the next `block` columns, as they are by then.

    On one thread: these are thousands of operations on one column each, and on a busy machine threads that wait for one
    another made them take 5 to 50 times as long. Integers then do not depend on the number of cores either.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _gptq_here(work, hessian, block, find, paired)
    finally:
        torch.set_num_threads(threads)


def _gptq_here(
    work: torch.Tensor,
    hessian: torch.Tensor,
    block: int,
    find: Callable[[torch.Tensor, torch.Tensor], Grid | Palette],
    paired: bool,
) -> torch.Tensor:
    columns = work.shape[1]
    work = work.clone()
    diagonal = hessian.diagonal().double()
    hessian = hessian.double().clone()
    hessian.diagonal().add_(0.01 * float(diagonal.mean()) + 1e-12)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    integers = torch.zeros_like(work)
    stride = min(block, _STRIDE)
    for start in range(0, columns, stride):
        end = min(start + stride, columns)
        if start % block == 0:
            grid = find(work[:, start : start + block], diagonal[start : start + block])
        errors = torch.zeros(len(work), end - start, dtype=work.dtype)
        for column in range(start, end):
            value = work[:, column : column + 1]
            chosen = grid.integers(value)
            if paired and column % 2:
                before = integers[:, column - 1 : column]
                chosen = torch.minimum(torch.maximum(chosen, -PAIR - before), PAIR - before)
            integers[:, column : column + 1] = chosen
            error = (value - grid.values(chosen)) / inverse[column, column]
            errors[:, column - start : column - start + 1] = error
            work[:, column + 1 : end] -= error * inverse[column, column + 1 : end]
        work[:, end:] -= errors @ inverse[start:end, end:]
    return integers


def _widen(grid: Grid, part: torch.Tensor, together: bool) -> None:
    """Let no two neighbours of an 8-bit row add up to more than `PAIR`. `together`: all rows have one scale."""
    if part.shape[1] < 2:
        return
    even = part[:, : part.shape[1] // 2 * 2]
    sums = (even[:, 0::2] + even[:, 1::2]).abs().amax(1, keepdim=True)
    grid.scale = torch.maximum(grid.scale, (sums.amax() if together else sums) / (PAIR - 1))


def _limit_pairs(integers: torch.Tensor) -> None:
    pairs = integers[:, : integers.shape[1] // 2 * 2]
    first, second = pairs[:, 0::2], pairs[:, 1::2]
    second.copy_(torch.minimum(torch.maximum(second, -PAIR - first), PAIR - first))
