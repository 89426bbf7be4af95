"""What coremltools 9.0 gets wrong with programs of torch 2.13, and how we get around it.

Each workaround is a function that patches coremltools while `compatible()` is entered, and is undone on the way out:
nothing here changes coremltools for anybody else in the process. tests/export/test_coreml_compat.py has, for each of
them, a test that fails once coremltools does without.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol


class Patch(Protocol):
    def __call__(self, stack: ExitStack) -> None: ...


@dataclass(frozen=True)
class Workaround:
    """`apply` patches through the stack that undoes it. `affected`: versions; `symptom`: what one sees without it."""

    name: str
    affected: str
    symptom: str
    apply: Callable[[ExitStack], None]


WORKAROUNDS: dict[str, Workaround] = {}


def workaround(affected: str, symptom: str) -> Callable[[Callable[[ExitStack], None]], Callable[[ExitStack], None]]:
    """Register a function as a workaround, under its own name."""

    def register(function: Callable[[ExitStack], None]) -> Callable[[ExitStack], None]:
        WORKAROUNDS[function.__name__] = Workaround(function.__name__, affected, symptom, function)
        return function

    return register


@contextmanager
def compatible(without: tuple[str, ...] = ()) -> Iterator[None]:
    """coremltools with every workaround applied but those named in `without`, quiet, and as it was afterwards."""
    with quiet(), ExitStack() as stack:
        for entry in WORKAROUNDS.values():
            if entry.name not in without:
                entry.apply(stack)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """No notices of untested versions, no progress bars, no chatter, while coremltools is imported and works."""
    logger = logging.getLogger("coremltools")
    level, disabled = logger.level, logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            import coremltools  # noqa: F401
        finally:
            logging.disable(disabled)
        logger.setLevel(logging.CRITICAL)
        try:
            with no_progress_bars():
                yield
        finally:
            logger.setLevel(level)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    from coremltools.converters.mil.backend.mil import load as backend
    from coremltools.converters.mil.frontend.torch import ops as frontend

    with ExitStack() as stack:
        for module, name in ((frontend, "_tqdm"), (backend, "tqdm")):
            if hasattr(module, name):
                replaced(stack, module, name, lambda items, *_, **__: items)
        yield


def replaced(stack: ExitStack, owner: Any, name: str, value: Any) -> Any:
    """Set an attribute until the stack unwinds; returns what it was."""
    previous = owner.__dict__[name]
    setattr(owner, name, value)
    stack.callback(setattr, owner, name, previous)
    return previous


def registered(stack: ExitStack, name: str, translate: Callable) -> None:
    """Register the translation of a PyTorch operation until the stack unwinds."""
    table = _registry().name_to_func_mapping
    missing = object()
    previous = table.get(name, missing)
    table[name] = translate
    stack.callback(lambda: table.pop(name) if previous is missing else table.__setitem__(name, previous))


def _registry() -> Any:
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    return _TORCH_OPS_REGISTRY


def convertible(target: Any) -> bool:
    """Whether coremltools has a translation for a node's target (an operator overload or a Python function)."""
    from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind

    name = target.name() if callable(getattr(target, "name", None)) else getattr(target, "__name__", str(target))
    return sanitize_op_kind(name) in _registry().name_to_func_mapping


# --- workarounds ----------------------------------------------------------------------------------------------------

_ALL = "coremltools <= 9.0"


@workaround(_ALL, "NotImplementedError: Unsupported fx node, kind alias / detach / lift_fresh_copy")
def copies_are_identities(stack: ExitStack) -> None:
    """`alias`, `detach`, `lift_fresh_copy` and assertions compute nothing; some have no translation."""

    def identity(context: Any, node: Any) -> None:
        from coremltools.converters.mil.frontend.torch.ops import _get_inputs

        context.add(_get_inputs(context, node)[0], torch_name=node.name)

    for name in ("alias", "detach", "lift_fresh_copy"):
        registered(stack, name, identity)


@workaround(_ALL, "NotImplementedError: Unsupported fx node, kind __and__")
def double_underscore_operators(stack: ExitStack) -> None:
    """The registry strips the underscores of `__and__` when it looks up a name, not when it is asked if it has it."""
    table = _registry().name_to_func_mapping
    for name in ("and", "or"):
        registered(stack, f"__{name}__", table.get(name) or table[f"logical_{name}"])


@workaround(_ALL, "NotImplementedError: Unsupported fx node, kind to.dtype")
def casts_by_overload(stack: ExitStack) -> None:
    """`to.dtype` is translated by the function for `to`, which knows that overload, but is not registered under it."""
    registered(stack, "to.dtype", _registry().name_to_func_mapping["to"])
