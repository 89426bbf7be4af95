"""Decoder-only models that keep no keys and values: for every token the program runs the whole sequence.

The model prepares its inputs itself, with what Transformers calls before each step of `generate`: some put a token
there to be predicted (XLNet, XLM), and then only the last position says anything. So what such a program is compared
with is, at each position, the eager model run on all up to there.
"""

from __future__ import annotations

import inspect

import torch

from ...runtime.assembly import COMPARED
from ...runtime.errors import UnsupportedError
from ...runtime.manifest import Dim, TensorSpec
from ..subject import Part
from .decoder import LOGITS, METHOD, TOKENS

# As the rows and tokens of the example: no two axes of one size.
_EXAMPLE = (2, 11)


class Uncached:
    """A model that says the next token when it is given all before it."""

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.parameters = inspect.signature(model.forward).parameters
        # XLNet has a name of its own for what it keeps, which is no cache of keys and values.
        unused = {"use_mems": False} if "use_mems" in self.parameters else {}
        self.options = {"use_cache": False, **unused}
        self._check()

    def part(self, context: int) -> Part:
        """Tokens (batch, sequence) to the logits of what follows the last, (batch, 1, vocabulary)."""
        axes = (Dim(symbol="batch", min=1), Dim(symbol="sequence", min=1, max=context))
        example = {TOKENS: torch.arange(_EXAMPLE[0] * _EXAMPLE[1]).reshape(_EXAMPLE) % self._vocabulary()}
        specs = (TensorSpec(TOKENS, "int64", axes),)

        def call(model: torch.nn.Module, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
            return [self.next(model, given[TOKENS])]

        return Part(METHOD, call, specs, (LOGITS,), example, free=("sequence",))

    def whole(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The logits of what follows each of the last positions."""
        ids = inputs[TOKENS]
        ends = range(max(ids.shape[1] - COMPARED, 0) + 1, ids.shape[1] + 1)
        return [torch.cat([self.next(model, ids[:, :end]) for end in ends], dim=1)]

    def next(self, model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
        """The logits of what follows a sequence, (batch, 1, vocabulary)."""
        prepared = model.prepare_inputs_for_generation(ids, **self.options)
        given = {name: value for name, value in prepared.items() if name in self.parameters and value is not None}
        return model(**given, return_dict=True).logits[:, -1:]

    def _check(self) -> None:
        """That the model runs so, and says the same twice."""
        ids = (torch.arange(_EXAMPLE[1])[None] * 7 + self._vocabulary() // 2) % self._vocabulary()
        name = type(self.model).__name__
        try:
            with torch.no_grad():
                first, second = (self.next(self.model, ids) for _ in range(2))
        except Exception as error:  # models raise whatever they like
            raise UnsupportedError(
                f"{name} keeps no keys and values between tokens, and does not run on a sequence alone: {error}\n"
                "Remedy: export it for another task (--task feature-extraction)."
            ) from error
        if not torch.equal(first, second):
            raise UnsupportedError(
                f"{name} says something else each time it is run: it draws random numbers.\n"
                "Remedy: a configuration without them; an exported model has none."
            )

    def _vocabulary(self) -> int:
        return self.model.get_input_embeddings().num_embeddings
