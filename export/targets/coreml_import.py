"""Importing coremltools without what it imports for others, a third of the time that a Core ML export takes."""

from __future__ import annotations

import sys

from ..imports import absent

# scikit-learn (with pandas and half of SciPy) is for models of its own; executorch for programs in its edge dialect.
_FOR_OTHERS = ("sklearn", "executorch")


def import_coremltools() -> None:
    """Import it, without packages that are for models that nobody gives us.

    A program that has imported one of these already keeps what coremltools does with it.
    """
    if "coremltools" not in sys.modules:
        with absent(*_FOR_OTHERS):
            import coremltools  # noqa: F401
