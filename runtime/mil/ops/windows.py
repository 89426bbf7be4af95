"""What convolution and pooling share: padding of spatial dimensions and views of sliding windows.

Both follow coremltools' shape inference (`ops/defs/_utils.py`), so that results have the declared shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided

Ints = Sequence[int]


def integers(values: object, count: int, default: int) -> list[int]:
    """`values` as `count` Python integers; None gives `count` times `default`. ValueError when the length differs."""
    if values is None:
        return [default] * count
    result = [int(v) for v in np.asarray(values).reshape(-1)]
    if len(result) != count:
        raise ValueError(f"expected {count} integers, got {result}")
    return result


def padding(pad_type: str, pad: object, sizes: Ints, kernel: Ints, strides: Ints) -> list[tuple[int, int]]:
    """Elements to add before and after each spatial dimension of `sizes` (`kernel` counts dilation).

    "same" puts the odd element after and "same_lower" before: BOTTOM_RIGHT_HEAVY and TOP_LEFT_HEAVY of Core ML's
    NeuralNetwork.proto, which is also TensorFlow's rule. The formula in the documentation of `conv`, which forgets
    the strides, is not used: the inferred output shapes contradict it.
    """
    kind = pad_type.lower()
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        flat = integers(pad, 2 * len(sizes), 0)
        return list(zip(flat[::2], flat[1::2], strict=True))
    if kind not in ("same", "same_lower"):
        raise ValueError(f'pad_type must be "valid", "same", "same_lower" or "custom", got "{pad_type}"')
    totals = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(sizes, kernel, strides, strict=True)]
    pairs = [(total // 2, total - total // 2) for total in totals]
    return pairs if kind == "same" else [(after, before) for before, after in pairs]


def padded(x: np.ndarray, pads: Sequence[tuple[int, int]], value: float = 0.0) -> np.ndarray:
    """`x` [n, c, *spatial] with its spatial dimensions padded by `value`; `x` itself when there is nothing to add."""
    if not any(before or after for before, after in pads):
        return x
    sizes = [n + before + after for n, (before, after) in zip(x.shape[2:], pads, strict=True)]
    result = np.full((*x.shape[:2], *sizes), value, x.dtype)
    inside = tuple(slice(before, before + n) for n, (before, _) in zip(x.shape[2:], pads, strict=True))
    result[(slice(None), slice(None), *inside)] = x
    return result


def windows(x: np.ndarray, kernel: Ints, outputs: Ints, strides: Ints, dilations: Ints) -> np.ndarray:
    """A read-only view [n, c, *kernel, *outputs] of the windows over the spatial dimensions of `x`."""
    for n, k, o, s, d in zip(x.shape[2:], kernel, outputs, strides, dilations, strict=True):
        if o < 1 or (o - 1) * s + (k - 1) * d + 1 > n:
            raise ValueError(f"a window of {k} (dilation {d}, stride {s}) does not fit {n} elements")
    spatial = x.strides[2:]
    steps = [b * d for b, d in zip(spatial, dilations, strict=True)]
    jumps = [b * s for b, s in zip(spatial, strides, strict=True)]
    shape = (*x.shape[:2], *kernel, *outputs)
    return as_strided(x, shape, (*x.strides[:2], *steps, *jumps), writeable=False)
