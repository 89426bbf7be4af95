"""Rotary positions whose frequencies a model stretches once a sequence is longer than any that it was trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

# How `transformers.modeling_rope_utils` tells such a kind of positions, and what it calls one that never changes.
_STRETCHED, _CONSTANT = "dynamic", "default"


@contextlib.contextmanager
def frequencies_as_they_are(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block a model's frequencies stay what they are: those of sequences that are no longer than its config
    says, which is all that artifacts take. Which are longer depends on the data, and torch.export cannot follow.
    """
    changed: list[tuple[Any, Any]] = [(module, module.rope_type) for module in model.modules() if _is_stretched(module)]
    try:
        for module, kinds in changed:
            several = isinstance(kinds, dict)  # one for each kind of layers
            module.rope_type = {name: _constant(kind) for name, kind in kinds.items()} if several else _CONSTANT
        yield
    finally:
        for module, kinds in changed:
            module.rope_type = kinds


def _is_stretched(module: torch.nn.Module) -> bool:
    kinds: Any = getattr(module, "rope_type", None)
    return any(_STRETCHED in str(kind) for kind in (kinds.values() if isinstance(kinds, dict) else [kinds]))


def _constant(kind: str) -> str:
    return _CONSTANT if _STRETCHED in kind else kind
