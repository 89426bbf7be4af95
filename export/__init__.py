"""From a checkpoint to a verified bundle: capture, lower, verify, pack, and the command line.

Needs torch (`pip install 'palmtop[export]'`); importing this package does not, so that the command line can verify, run
and inspect bundles without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import export_checkpoint, export_module

__all__ = ["export_checkpoint", "export_module"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
