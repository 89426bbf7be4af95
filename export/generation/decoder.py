"""A decoder-only model as a program that takes tokens and a cache and gives logits and the cache.

One route serves every architecture: the unpatched model is called with a `Cache` made of the program's inputs. How it
wants to be called is found by trying: what gives the logits of the whole sequence at once, given in steps, is right.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache

from ...runtime.errors import UnsupportedError
from ...runtime.manifest import Dim, TensorSpec
from ..subject import Part
from .cache import cache_tensors, fixed_cache, growing_cache, shifting_cache
from .counting import CountedFrom

# Tokens that are tried, and in which steps: one at once, several at once, and several behind others.
_TRIED = (4, 1, 3)
# Steps against the whole sequence, relative to the largest logit: sums of fp32 in another order stay far below.
_NEAR = 1e-3

Tensors = dict[str, torch.Tensor]

METHOD = "decoder"
# Axes of a growing cache that stay axes.
_FREE = ("sequence", "past")
TOKENS, START, LOGITS = "input_ids", "start", "logits"


@dataclass(frozen=True)
class Form:
    """How a model is called with a cache: whether positions are given, and where new keys go in a fixed cache.

    `shifts`: the filled part of a fixed cache is its end, as with padding on the left, not its beginning. That is for
    models that count keys from the last one (GPT-Neo's local attention).
    """

    positions: bool
    shifts: bool = False


class Unread(torch.Tensor):
    """Numbers that a model may compute with, and not make sizes or decisions of: those of a captured program's inputs
    are not known. Only whether they equal something is told, which Transformers asks when it is not being captured.
    """

    @staticmethod
    def of(values: list[int]) -> Unread:
        return torch.tensor(values).as_subclass(Unread)

    def __index__(self) -> int:
        raise TypeError("a size that depends on an input")

    __int__ = __bool__ = __index__

    def __eq__(self, other: object) -> torch.Tensor:
        return self.as_subclass(torch.Tensor) == other

    __hash__ = torch.Tensor.__hash__


class NoCache(UnsupportedError):
    """A model has no cache of keys and values, or another one."""

    def __init__(self, model: torch.nn.Module):
        super().__init__(
            f"{type(model).__name__} keeps no keys and values between tokens, so there is no cache to export.\n"
            "Remedy: export it for another task (--task feature-extraction)."
        )


class Decoder:
    """A model that generates, with what was found out about it by running it once.

    `layers` has the shapes of keys and values, (heads, depth) each.
    """

    tokens = TOKENS  # what the ids are called, to the model and in the artifact
    mask = "attention_mask"
    positions = "position_ids"

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.parameters: Mapping[str, inspect.Parameter] = inspect.signature(model.forward).parameters
        self.layers = self._layers()

    # --- the two programs -------------------------------------------------------------------------------------------

    def growing(self, context: int | None = None) -> Part:
        """The cache as inputs of the length that is filled, from 0 on, and as outputs that are longer by the tokens."""
        form = self._form(self._growing_steps, [Form(positions) for positions in self._positions()])
        names = self._names()
        past = Dim(symbol="past", min=0, max=None if context is None else context)
        batch, sequence = Dim(symbol="batch", min=1), Dim(symbol="sequence", min=1, max=context)
        inputs = [TensorSpec(self.tokens, "int64", (batch, sequence))]
        example = {self.tokens: torch.arange(2 * 5).reshape(2, 5) % self._vocabulary()}
        for (given, _), (heads, depth) in zip(names, self._shapes(), strict=True):
            inputs.append(TensorSpec(given, "float32", (batch, Dim(size=heads), past, Dim(size=depth))))
            example[given] = torch.zeros(2, heads, 3, depth)
        for spec, value in self._beside(batch, 2):
            inputs.append(spec)
            example[spec.name] = value

        def call(model: torch.nn.Module, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
            return self._call_growing(model, form, given[self.tokens], [given[name] for name, _ in names], given)

        outputs = (LOGITS, *(after for _, after in names))
        return Part(METHOD, call, tuple(inputs), outputs, example, names, free=_FREE, widen=self._widen(context))

    def fixed(self, context: int) -> Part:
        """The cache as inputs and outputs of a constant length, of which the first `start` positions are filled."""
        candidates = [Form(positions, shifts) for shifts in (False, True) for positions in self._positions()]
        form = self._form(functools.partial(self._fixed_steps, context=context), candidates)
        names = self._names()
        # What shifts by a whole context has no position before the new ones, which torch.export takes for another case.
        one, sequence = Dim(size=1), Dim(symbol="sequence", min=1, max=context - form.shifts)
        inputs = [TensorSpec(self.tokens, "int64", (one, sequence)), TensorSpec(START, "int64", (one,))]
        example = {self.tokens: torch.arange(5)[None] % self._vocabulary(), START: torch.tensor([3])}
        for (given, _), (heads, depth) in zip(names, self._shapes(), strict=True):
            inputs.append(TensorSpec(given, "float32", (one, Dim(size=heads), Dim(size=context), Dim(size=depth))))
            example[given] = torch.zeros(1, heads, context, depth)
        for spec, value in self._beside(one, 1):
            inputs.append(spec)
            example[spec.name] = value

        def call(model: torch.nn.Module, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
            tensors = [given[name] for name, _ in names]
            return self._call_fixed(model, form, given[self.tokens], given[START], tensors, given)

        return Part(METHOD, call, tuple(inputs), (LOGITS, *(after for _, after in names)), example, names, self._told())

    # --- calling the model ------------------------------------------------------------------------------------------

    def _call_growing(
        self, model: torch.nn.Module, form: Form, ids: torch.Tensor, tensors: list[torch.Tensor], beside: Tensors
    ) -> list[torch.Tensor]:
        cache = growing_cache(tensors)
        options = {}
        if form.positions:
            options[self.positions] = (torch.arange(ids.shape[1]) + cache.get_seq_length())[None].expand(
                ids.shape[0], -1
            )
        return [self._logits(model, ids, cache, options, beside), *cache_tensors(cache)]

    def _call_fixed(
        self,
        model: torch.nn.Module,
        form: Form,
        ids: torch.Tensor,
        start: torch.Tensor,
        tensors: list[torch.Tensor],
        beside: Tensors,
    ) -> list[torch.Tensor]:
        context, length = tensors[0].shape[2], ids.shape[1]
        if form.shifts:
            cache = shifting_cache(tensors, length)
            mask = (torch.arange(context) >= context - length - start).to(torch.int64)[None]
        else:
            cache = fixed_cache(tensors, start)
            mask = torch.ones(1, context, dtype=torch.int64)
        options = {self.mask: mask}
        if form.positions:
            options[self.positions] = (torch.arange(length) + start)[None]
        with CountedFrom(start, context - length):
            logits = self._logits(model, ids, cache, options, beside)
        return [logits, *cache_tensors(cache)]

    def _beside(self, batch: Dim, rows: int) -> list[tuple[TensorSpec, torch.Tensor]]:
        """What the decoder takes beside tokens and cache, with examples."""
        return []

    def _logits(
        self, model: torch.nn.Module, ids: torch.Tensor, cache: Cache, options: Tensors, beside: Tensors
    ) -> torch.Tensor:
        """Of the last position, (batch, 1, vocabulary)."""
        keep = {"logits_to_keep": 1} if "logits_to_keep" in self.parameters else {}
        result = model(input_ids=ids, past_key_values=cache, use_cache=True, return_dict=True, **keep, **options)
        return result.logits if keep else result.logits[:, -1:]

    def _told(self) -> dict[str, int | list[int]]:
        """Where text begins and ends, as far as the checkpoint says."""
        found: dict[str, int | list[int]] = {}
        settings = self.model.generation_config
        if isinstance(settings.bos_token_id, int):
            found["get_bos_id"] = settings.bos_token_id
        ends = settings.eos_token_id
        if ends is not None:
            found["get_eos_ids"] = [ends] if isinstance(ends, int) else list(ends)
        return found

    # --- finding out ------------------------------------------------------------------------------------------------

    def _layers(self) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
        if "past_key_values" not in self.parameters:
            raise NoCache(self.model)
        cache = growing_cache([])
        with torch.no_grad():
            try:
                self.model(input_ids=self._tokens(), past_key_values=cache, use_cache=True, return_dict=True)
            except Exception as error:
                raise NoCache(self.model) from error
        if not len(cache):
            raise NoCache(self.model)
        return tuple(
            ((keys.shape[1], keys.shape[3]), (values.shape[1], values.shape[3]))
            for keys, values in zip(cache_tensors(cache)[::2], cache_tensors(cache)[1::2], strict=True)
        )

    def _form(self, steps: Callable[[Form], Iterator[torch.Tensor]], candidates: list[Form]) -> Form:
        """The first that gives, in steps, what the model gives at once."""
        ids = self._tokens()
        with torch.no_grad():
            whole = self._whole(ids)[0]
            wanted = [whole[sum(_TRIED[: step + 1]) - 1] for step in range(len(_TRIED))]
            causes: list[Exception] = []
            for form in candidates:
                try:
                    found = list(steps(form))
                except Exception as error:  # models raise whatever PyTorch does about shapes that do not fit
                    causes.append(error)
                    continue
                distance = max((a - b).abs().max() for a, b in zip(found, wanted, strict=True))
                if distance <= _NEAR * whole.abs().max():
                    return form
        raise UnsupportedError(
            f"{type(self.model).__name__} gives other logits with a key-value cache than without one.\n"
            "Remedy: export it for another task, or generate without palmtop's cache."
        ) from (causes[0] if causes else None)

    def _widen(self, context: int | None) -> Callable[[], None] | None:
        """Runs the model on a sequence of twice its context: tokens and cache are bounded each, and not together."""
        if context is None:
            return None

        def widen() -> None:
            with torch.no_grad(), contextlib.suppress(Exception):  # tables that do not grow have no such positions
                self._whole((torch.arange(2 * context)[None] + self._vocabulary() // 2) % self._vocabulary())

        return widen

    def _whole(self, ids: torch.Tensor) -> torch.Tensor:
        """The logits of a whole sequence, without a cache."""
        return self.model(input_ids=ids, use_cache=False, return_dict=True).logits

    def _tried_beside(self) -> Tensors:
        """What `_beside` says, for the one row that is tried."""
        return {spec.name: value for spec, value in self._beside(Dim(size=1), 1)}

    def _growing_steps(self, form: Form) -> Iterator[torch.Tensor]:
        tensors: list[torch.Tensor] = [torch.zeros(1, heads, 0, depth) for heads, depth in self._shapes()]
        for ids, _ in self._steps():
            logits, *tensors = self._call_growing(self.model, form, ids, tensors, self._tried_beside())
            yield logits[0, -1]

    def _fixed_steps(self, form: Form, context: int) -> Iterator[torch.Tensor]:
        """In a cache of the length that it will have: what a window does is seen where the cache is longer than it."""
        context = max(context, sum(_TRIED) + 2)
        tensors = [torch.zeros(1, heads, context, depth) for heads, depth in self._shapes()]
        for ids, start in self._steps():
            given = self._tried_beside()
            logits, *tensors = self._call_fixed(self.model, form, ids, Unread.of([start]), tensors, given)
            yield logits[0, -1].as_subclass(torch.Tensor)

    def _steps(self) -> Iterator[tuple[torch.Tensor, int]]:
        ids, start = self._tokens(), 0
        for length in _TRIED:
            yield ids[:, start : start + length], start
            start += length

    def _tokens(self) -> torch.Tensor:
        """Different tokens, of those that are seldom special."""
        vocabulary = self._vocabulary()
        return (torch.arange(sum(_TRIED))[None] * 7 + vocabulary // 2) % vocabulary

    def _vocabulary(self) -> int:
        return self.model.get_input_embeddings().num_embeddings

    def _positions(self) -> tuple[bool, ...]:
        return (True, False) if self.positions in self.parameters else (False,)

    def _shapes(self) -> list[tuple[int, int]]:
        """(heads, depth) of each tensor of the cache, in order."""
        return [shape for layer in self.layers for shape in layer]

    def _names(self) -> tuple[tuple[str, str], ...]:
        return tuple(
            (f"past_{kind}_{layer}", f"present_{kind}_{layer}")
            for layer in range(len(self.layers))
            for kind in ("key", "value")
        )
