"""Which PyTorch module a node of a captured program came from."""

from __future__ import annotations

import torch

_WRAPPER = "model"


def module_path(node: torch.fx.Node) -> str:
    """The dotted path of the innermost module, as the user's model names it ("" for the model itself)."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    if not entries:
        return ""
    return user_path(entries[-1][0])


def user_path(path: str) -> str:
    """A path inside palmtop's `Method` wrapper as the user knows it: without the leading `model.`."""
    if path == _WRAPPER:
        return ""
    return path.removeprefix(f"{_WRAPPER}.")
