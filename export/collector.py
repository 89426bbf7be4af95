"""Python's collector of circular garbage, kept out of the way of a command that ends when its work is done.

Importing torch and tracing a model make millions of objects that live as long as the process. Looking through them
again and again took a sixth of the export of a small model, and once more at the end as long as translating it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Iterator

# Objects made since the last look before there is another, and looks before older objects are looked at too.
_SELDOM = (200_000, 20, 20)


# What held before, while garbage is looked for seldom.
_before: tuple[int, int, int] | None = None


@contextlib.contextmanager
def seldom() -> Iterator[None]:
    """Inside the block garbage is looked for seldom; when the process ends, not at all."""
    global _before
    outer, _before = _before, gc.get_threshold()
    gc.set_threshold(*_SELDOM)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        gc.freeze()  # what there is counts as looked at, or leaving the block would begin with a look at all of it
        gc.unfreeze()
        gc.set_threshold(*_before)
        _before = outer


def often() -> None:
    """For the rest of the block of `seldom`, if there is one, as it was: garbage may hold weights of a large model."""
    if _before is not None:
        gc.set_threshold(*_before)
