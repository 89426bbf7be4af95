"""Importing libraries without what they import for others: it can take as long as what an export does itself."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

# Functions that transformers imports wherever any model is loaded, and calls where a detector is trained and where a
# checkpoint of torchao's is loaded: half a second.
_SELDOM_CALLED = {
    "scipy.optimize": ("linear_sum_assignment",),
    "torchao.prototype.safetensors.safetensors_support": ("flatten_tensor_state_dict",),
}


def import_transformers() -> None:
    """Import what all models of transformers are made of; some of its functions import theirs when they are called."""
    if "transformers.modeling_utils" not in sys.modules:
        with contextlib.suppress(ImportError), on_call(_SELDOM_CALLED):  # else as everybody imports it
            import transformers.modeling_utils
    import transformers.modeling_utils  # noqa: F401


@contextlib.contextmanager
def absent(*names: str) -> Iterator[None]:
    """Inside the block these packages cannot be imported, unless they are there already."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def on_call(functions: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """What is imported of these modules inside the block is imported when it is called.

    Args:
        functions: by module, the names that are imported of it; a module that is there already stays.
    """
    awaited = [module for module in functions if module not in sys.modules]
    for module in awaited:
        stand_in = ModuleType(module)
        for name in functions[module]:
            setattr(stand_in, name, _forwarded(module, name))
        sys.modules[module] = stand_in
    try:
        yield
    finally:
        for module in awaited:
            del sys.modules[module]


def _forwarded(module: str, name: str) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return forward
