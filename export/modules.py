"""Which PyTorch module a node of a captured program came from."""

from __future__ import annotations

import torch

_WRAPPER = "model"
# What torch.export calls the place of nodes that belong to no module.
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"


def module_path(node: torch.fx.Node) -> str:
    """The dotted path of the innermost module, as the user's model names it ("" for the model itself)."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    if not entries:
        return ""
    return user_path(entries[-1][0])


def user_path(path: str) -> str:
    """A path inside palmtop's `Method` wrapper as the user knows it: without the leading `model.`."""
    if path in (_WRAPPER, _NO_MODULE):
        return ""
    return path.removeprefix(f"{_WRAPPER}.")
