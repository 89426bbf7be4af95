"""Importing libraries without what they import for others: it can take as long as what an export does itself."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

# Functions that transformers imports wherever any model is loaded, and calls where a detector is trained and where a
# checkpoint of torchao's is loaded: half a second. And what torch.export imports to save memory while training.
_SELDOM_CALLED = {
    "scipy.optimize": ("linear_sum_assignment",),
    "torchao.prototype.safetensors.safetensors_support": ("flatten_tensor_state_dict",),
    "networkx": ("DiGraph", "bfs_predecessors", "topological_sort"),
}


def import_transformers() -> None:
    """Import what all models of transformers are made of, and what captures them; some of their functions import
    theirs when they are called."""
    if "transformers.modeling_utils" not in sys.modules:
        with contextlib.suppress(ImportError), on_call(_SELDOM_CALLED):  # else as everybody imports it
            import torch.export._trace  # noqa: F401
            import transformers

            with _models_listed_once():
                import transformers.modeling_utils
    import transformers.modeling_utils  # noqa: F401


@contextlib.contextmanager
def _models_listed_once() -> Iterator[None]:
    """Inside the block transformers, which read the files of all its models to say what is in them, does not read them
    again for its package of models: its cache of folders holds fewer than there are."""
    from transformers.utils import import_utils

    read = import_utils.create_import_structure_from_path
    folder = Path(import_utils.__file__).parents[1] / "models"
    named = (folder, folder / "__init__.py")
    listed = read(folder)  # which its cache does hold: it came last
    import_utils.create_import_structure_from_path = lambda path: listed if Path(path) in named else read(path)
    try:
        yield
    finally:
        import_utils.create_import_structure_from_path = read


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
        stand_in.__spec__ = ModuleSpec(module, None)  # for those who ask whether it is installed
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
