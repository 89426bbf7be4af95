"""How large a picture becomes: the rules of the `resize` step, each a function of a size and the step's parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Size = tuple[int, int]  # height, width


def exact(size: Size, step: dict[str, Any]) -> Size:
    """To `height` and `width`, whatever the shape was."""
    return step["height"], step["width"]


def shortest_edge(size: Size, step: dict[str, Any]) -> Size:
    """The shorter edge to `edge`, the other in proportion, cut to whole pixels; but no edge longer than `longest`.

    With `multiple` both are then rounded to multiples of it, `rounding` `down` or `up`.
    """
    height, width = size
    edge, longest = step["edge"], step.get("longest")
    exactly: float = edge
    if longest is not None:
        low, high = float(min(size)), float(max(size))
        if high / low * edge > longest:
            exactly = longest * low / high
            edge = round(exactly)
    if min(size) == edge:
        found = size
    elif width < height:
        found = (int(exactly * height / width), edge)
    else:
        found = (edge, int(exactly * width / height))
    return _to_multiple(found, step)


def scaled(size: Size, step: dict[str, Any]) -> Size:
    """As `shortest_edge` with `longest`, but the scale is kept exact, sides are rounded half up, then down to
    multiples of `multiple`."""
    scale = step["edge"] / min(size)
    sides = [
        step["edge"] if size[0] < size[1] else scale * size[0],
        scale * size[1] if size[0] < size[1] else step["edge"],
    ]
    if max(sides) > step["longest"]:
        scale = step["longest"] / max(sides)
        sides = [scale * side for side in sides]
    height, width = (int(side + 0.5) // step["multiple"] * step["multiple"] for side in sides)
    return height, width


def within(size: Size, step: dict[str, Any]) -> Size:
    """As large as fits into `height` and `width`, in proportion; small pictures grow."""
    scale = min(step["height"] / size[0], step["width"] / size[1])
    return int(size[0] * scale), int(size[1] * scale)


def multiple(size: Size, step: dict[str, Any]) -> Size:
    """The picture's own size, rounded to a `multiple`."""
    return _to_multiple(size, step)


def nearest(size: Size, step: dict[str, Any]) -> Size:
    """To `height` and `width`, rounded to multiples of `multiple`; in proportion with `keep_aspect_ratio`, by the scale
    that changes the picture less. Halves are rounded to even; a multiple may be a fraction (ZoeDepth's is 1/32)."""
    scale_height, scale_width = step["height"] / size[0], step["width"] / size[1]
    if step["keep_aspect_ratio"]:
        if abs(1 - scale_width) < abs(1 - scale_height):
            scale_height = scale_width
        else:
            scale_width = scale_height
    unit = step["multiple"]

    def rounded(length: float) -> int:
        return int(max(round(length / unit) * unit, 0))

    return rounded(scale_height * size[0]), rounded(scale_width * size[1])


def thumbnail(size: Size, step: dict[str, Any]) -> Size:
    """Shrunk so that the longer edge fits its side of `height` and `width`, in proportion; small pictures stay."""
    height, width = min(size[0], step["height"]), min(size[1], step["width"])
    if (height, width) == size:
        return size
    if size[0] > size[1]:
        width = int(size[1] * height / size[0])
    elif size[1] > size[0]:
        height = int(size[0] * width / size[1])
    return height, width


def _to_multiple(size: Size, step: dict[str, Any]) -> Size:
    unit = step.get("multiple")
    if unit is None:
        return size
    if step["rounding"] == "up":
        return math.ceil(size[0] / unit) * unit, math.ceil(size[1] / unit) * unit
    return size[0] // unit * unit, size[1] // unit * unit


RULES: dict[str, Callable[[Size, dict[str, Any]], Size]] = {
    rule.__name__: rule for rule in (exact, shortest_edge, scaled, within, multiple, nearest, thumbnail)
}
