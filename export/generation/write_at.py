"""Writing into a cache of constant size, as one operation, so that every format can have it in its own way: a slice in
Core ML, an index in ExecuTorch, which changes memory in place.
"""

from __future__ import annotations

import torch

_LIBRARY = torch.library.Library("palmtop", "FRAGMENT")
_LIBRARY.define("write_at(Tensor cache, Tensor new, Tensor start) -> Tensor")


def _write_at(cache: torch.Tensor, new: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """`cache` (batch, heads, context, depth) with `new` (batch, heads, length, depth) from position `start` (1,) on."""
    places = torch.arange(new.shape[2], device=new.device) + start
    return torch.index_copy(cache, 2, places, new)


_LIBRARY.impl("write_at", _write_at, "CompositeExplicitAutograd")
_LIBRARY.impl("write_at", lambda cache, new, start: torch.empty_like(cache), "Meta")

WRITE_AT = torch.ops.palmtop.write_at.default
