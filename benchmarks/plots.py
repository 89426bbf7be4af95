"""Line and bar plots as SVG, so that the benchmarks need no plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 360, 60, 150, 34, 44
_COLORS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8a8a8a", "#7b4fa3")


def lines(title: str, across: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A plot with both axes from 0; one line with dots for each series of (x, y)."""
    every = [point for points in series.values() for point in points]
    right, top = (_round_up(max((point[axis] for point in every), default=1.0)) for axis in (0, 1))
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return round(_LEFT + wide * x / right, 1), round(_TOP + high * (1 - y / top), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-weight="bold">{escape(title)}</text>',
        f'<text x="{_LEFT + wide / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(across)}</text>',
    ]
    for step in range(5):
        x, y = place(right * step / 4, top * step / 4)
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{_LEFT + wide}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{top * step / 4:g}</text>')
        parts.append(f'<text x="{x}" y="{_TOP + high + 18}" text-anchor="middle">{right * step / 4:g}</text>')
    for number, (name, points) in enumerate(series.items()):
        color = _COLORS[number % len(_COLORS)]
        drawn = [place(*point) for point in sorted(points)]
        path = " ".join(f"{x},{y}" for x, y in drawn)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in drawn]
        height = _TOP + 14 + 18 * number
        parts.append(f'<text x="{_LEFT + wide + 12}" y="{height}" fill="{color}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def bars(title: str, kinds: Sequence[str], series: Mapping[str, Sequence[float]]) -> str:
    """Horizontal bars from 0: for each name, one for each kind, in the colour of the kind, its value beside it."""
    left, wide, thick = 260, 320, 15
    step = thick * len(kinds) + 10
    height = 60 + step * len(series)
    top = max((value for values in series.values() for value in values), default=1.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="20" font-weight="bold">{escape(title)}</text>',
    ]
    for number, kind in enumerate(kinds):
        parts.append(f'<text x="{left + 130 * number}" y="42" fill="{_COLORS[number]}">{escape(kind)}</text>')
    for row, (name, values) in enumerate(series.items()):
        y = 54 + step * row
        middle = y + thick * len(kinds) / 2 + 4
        parts.append(f'<text x="{left - 8}" y="{middle}" text-anchor="end">{escape(name)}</text>')
        for number, value in enumerate(values):
            at, length = y + thick * number, round(wide * value / top, 1)
            color = _COLORS[number]
            parts.append(f'<rect x="{left}" y="{at}" width="{length}" height="{thick - 2}" fill="{color}"/>')
            parts.append(f'<text x="{left + length + 5}" y="{at + thick - 4}">{value:.3g}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _round_up(value: float) -> float:
    """The next 1, 2, 4 or 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value * 0.999)
