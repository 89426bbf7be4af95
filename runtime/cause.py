"""Why a half-precision artifact fails: the operation that overflows or drifts, its module, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cause:
    """The operation to blame.

    `kind` is `overflows` or `diverges`, `detail` says by how much. `module` is the PyTorch module it came from ("": the
    model itself; None: not recorded). `overflowing`: every module that passes fp16's range, with its largest magnitude.
    """

    operation: str
    type: str
    module: str | None
    kind: str
    detail: str
    overflowing: dict[str, float] = field(default_factory=dict)

    @property
    def remedy(self) -> str:
        """What to ask of `palmtop export`."""
        if self.module is None:
            return "export with --quantize none"
        modules = list(dict.fromkeys([self.module, *self.overflowing]))[:_MOST_NAMED]
        asked = " ".join(f"--keep-fp32 {name or repr('')}" for name in modules)
        more = len({self.module, *self.overflowing}) - len(modules)
        return f"export with {asked}" + (f" (and {more} more modules that overflow)" if more else "")

    def describe(self) -> str:
        """The cause in one line, the remedy in another."""
        return (
            f"the first operation that {self.kind} is {self.operation} ({self.type}), {place(self.module)}: "
            f"{self.detail}.\n  Remedy: {self.remedy}."
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "operation": self.operation,
            "type": self.type,
            "module": self.module,
            "kind": self.kind,
            "detail": self.detail,
            "overflowing": {name: float(f"{peak:.3g}") for name, peak in self.overflowing.items()},
            "remedy": self.remedy,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Cause:
        """What `to_json` gave. Raises TypeError for anything else."""
        return cls(**{key: value for key, value in entry.items() if key != "remedy"})


_MOST_NAMED = 4


def place(module: str | None) -> str:
    """Where in the PyTorch model."""
    if module is None:
        return "whose PyTorch module is not recorded"
    return f"in {module}" if module else "in the model itself, outside of its modules"
