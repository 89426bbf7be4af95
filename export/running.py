"""A model run eagerly on what palmtop feeds it: what it raises then, said as an error of palmtop's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch

from ..runtime.errors import PalmtopError, UnsupportedError

# How PyTorch says that there is no more memory on a CPU.
_NO_MEMORY = "allocate memory"
_OTHERWISE = "choose another --task, or export the module with inputs of your own (palmtop.export.export_module)"
# What can be done about what models say, by a part of it.
_REMEDIES = {
    "no padding token": "set pad_token_id in its config.json: the token that its tokenizer pads with, or its end token",
}


class NotRun(UnsupportedError):
    """A model does not run on inputs that palmtop makes for it."""


@contextlib.contextmanager
def running(model: torch.nn.Module, inputs: Iterable[str]) -> Iterator[None]:
    """Around a call of a model with inputs of these names.

    Raises:
        NotRun: the model raised something; says what, and what to do. MemoryError: there is not enough memory.
    """
    try:
        yield
    except (PalmtopError, MemoryError):
        raise
    except Exception as error:  # models raise whatever Python does about inputs that they do not take
        if _NO_MEMORY in str(error):
            raise MemoryError(str(error)) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
        remedy = next((remedy for part, remedy in _REMEDIES.items() if part in said), _OTHERWISE)
        raise NotRun(
            f"{type(model).__name__} does not run on what palmtop feeds it ({', '.join(inputs)}): {said}\n"
            f"Remedy: {remedy}."
        ) from error
