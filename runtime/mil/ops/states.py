"""States. Definitions: coremltools' iOS18/states.py and coreml_dialect/ops.py; `write_state` exists on disk only."""

from __future__ import annotations

import numpy as np

from ..registry import op
from ..state import Cell


@op("read_state", since="ios18", exact=True)
def read_state(input: Cell) -> np.ndarray:
    """What the state holds. Arrays are never written into, so no copy is needed."""
    return input.value


@op("write_state", since="ios18")
def write_state(input: Cell, data: np.ndarray) -> tuple[()]:
    """Replace what the state holds."""
    input.write(data)
    return ()


@op("coreml_update_state", since="ios18", exact=True)
def coreml_update_state(state: Cell, value: np.ndarray) -> np.ndarray:
    """Replace what the state holds and give it back (saved packages have write_state and read_state instead)."""
    state.write(value)
    return value
