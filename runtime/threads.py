"""How many threads numpy's matrix products take: the one engine here whose sessions have no such setting."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

# What OpenBLAS's setter is called in numpy's own wheels and elsewhere.
_SETTERS = ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads", "openblas_set_num_threads64_")


def limit_blas(threads: int) -> bool:
    """Give numpy's OpenBLAS this many threads, for the whole process. False when numpy came with another library."""
    setter = _setter()
    if setter is not None:
        setter(threads)
    return setter is not None


@functools.cache
def _setter() -> Callable[[int], None] | None:
    root = Path(np.__file__).parent
    places = [root.parent / "numpy.libs", root / ".dylibs"]
    for path in sorted(path for place in places for path in place.glob("*openblas*")):
        library = ctypes.CDLL(str(path))
        for name in _SETTERS:
            if hasattr(library, name):
                setter = getattr(library, name)
                setter.argtypes, setter.restype = [ctypes.c_int], None
                return setter
    return None
