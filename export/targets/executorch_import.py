"""Importing executorch in half of the time: what it reads slowly is read quickly, what it never needs is left out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from ..imports import on_call

# torch's compiler, for one function that is called for programs with operations of the user's that write in place.
_SELDOM_CALLED = {"torch._inductor.fx_passes.post_grad": ("decompose_auto_functionalized",)}
_TABLE = "executorch.exir.dialects.edge._ops"


def import_executorch() -> None:
    """Import what every program is lowered with. Written for executorch 1.4.1."""
    if _TABLE in sys.modules:
        return
    with on_call(_SELDOM_CALLED):
        import torch.export._remove_auto_functionalized_pass  # noqa: F401
    with _read_in_c():
        import executorch.exir.dialects.edge._ops  # noqa: F401


@contextlib.contextmanager
def _read_in_c() -> Iterator[None]:
    """executorch's table of operations, read by PyYAML's reader in C inside the block: its own is in Python."""
    import ruamel.yaml

    reader = getattr(yaml, "CSafeLoader", None)
    if reader is None:
        yield
        return

    class Table:
        def __init__(self, typ: str):
            pass

        def load(self, text: str) -> Any:
            return yaml.load(text, reader)

    theirs = ruamel.yaml.YAML
    setattr(ruamel.yaml, "YAML", Table)  # noqa: B010  (to type checkers a class is no variable)
    try:
        yield
    finally:
        setattr(ruamel.yaml, "YAML", theirs)  # noqa: B010
