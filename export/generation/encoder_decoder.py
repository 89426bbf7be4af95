"""An encoder-decoder as two programs, by one route for every architecture.

The encoder gives keys and values of what it read, made once by the decoder's own projections, and its hidden states are
needed no more; the decoder takes those beside its tokens and its cache.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from ...runtime.errors import UnsupportedError
from ...runtime.manifest import Dim, TensorSpec
from ..subject import Part
from .cache import cache_tensors, growing_cache
from .decoder import Decoder, Tensors

ENCODER = "encoder"
MASK = "attention_mask"
# Which of the encoder's positions the decoder attends to, where the model makes that of what the encoder reads.
CROSS_MASK = "encoder_attention_mask"


@dataclass
class Encoded(BaseModelOutput):
    """What an encoder gives. Some models look for a mask in it."""

    attention_mask: torch.Tensor | None = None


class EncoderDecoder(Decoder):
    """An encoder-decoder, with what was found out about it by running it once.

    Args:
        inputs: of the encoder. example: of at least one row of each.
        start: the id that its decoder begins with.

    `encoded` is the number of positions that the encoder gives for one row of the example.
    """

    tokens = "decoder_input_ids"
    mask = "decoder_attention_mask"
    positions = "decoder_position_ids"

    def __init__(
        self,
        model: torch.nn.Module,
        inputs: tuple[TensorSpec, ...],
        example: Mapping[str, torch.Tensor],
        start: int,
    ):
        self.inputs = inputs
        self.example = dict(example)
        self.row = {name: value[:1].contiguous() for name, value in example.items()}
        self.start = start
        with torch.no_grad(), crossing(model) as told:
            given = {self.tokens: torch.tensor([[start]])}
            result = model(**self.row, **given, use_cache=False, return_dict=True)
        states = result.encoder_last_hidden_state
        if states is None:
            raise _no_encoder(model)
        self.encoded, self.width = states.shape[1], states.shape[2]
        self.vocabulary = result.logits.shape[-1]  # configurations keep it in many places
        # A mask of what the encoder read serves the decoder where it gives a position for each that it reads.
        self.has_mask = MASK in self.row and self.row[MASK].shape[1] == self.encoded
        self.makes_mask = not self.has_mask and told.mask is not None and told.mask.shape == (1, self.encoded)
        self.most: int | None = None  # positions that the encoder gives for the longest input, once it is known
        super().__init__(model)
        if isinstance(getattr(model.config, "decoder", None), PretrainedConfig):
            # A model made of two others hands on to its decoder what begins so.
            taken = inspect.signature(_decoder_of(model).forward).parameters
            self.parameters = {**self.parameters, **{f"decoder_{name}": taken[name] for name in taken}}

    # --- the encoder ------------------------------------------------------------------------------------------------

    def encoder(self) -> Part:
        """What it reads in; out keys and values for each of the decoder's layers, (batch, heads, encoded, depth)."""

        def call(model: torch.nn.Module, given: Tensors) -> list[torch.Tensor]:
            return self._crossed(model, given)

        names = (*self._cross_names(), *([CROSS_MASK] if self.makes_mask else []))
        return Part(ENCODER, call, self.inputs, names, self.example)

    def _crossed(self, model: torch.nn.Module, given: Tensors) -> list[torch.Tensor]:
        """The decoder is run on its first token, and only what it makes of the encoder's states is kept of that."""
        cache = EncoderDecoderCache(growing_cache([]), growing_cache([]))
        rows = next(iter(given.values())).shape[0]
        first = torch.full((rows, 1), self.start, dtype=torch.int64)
        with crossing(model) as told:
            model(**given, **{self.tokens: first}, past_key_values=cache, use_cache=True, return_dict=True)
        mask = [told.mask.to(torch.int64)] if self.makes_mask and told.mask is not None else []
        return [*cache_tensors(cache.cross_attention_cache), *mask]

    # --- the decoder ------------------------------------------------------------------------------------------------

    def _layers(self) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
        cache = EncoderDecoderCache(growing_cache([]), growing_cache([]))
        with torch.no_grad():
            self.model(
                **self.row, **{self.tokens: self._tokens()}, past_key_values=cache, use_cache=True, return_dict=True
            )
        own, cross = cache_tensors(cache.self_attention_cache), cache_tensors(cache.cross_attention_cache)
        if not own or len(own) != len(cross):
            raise _no_encoder(self.model)
        self.cross = cross
        return tuple(
            ((keys.shape[1], keys.shape[3]), (values.shape[1], values.shape[3]))
            for keys, values in zip(own[::2], own[1::2], strict=True)
        )

    def _cross_names(self) -> list[str]:
        return [f"cross_{kind}_{layer}" for layer in range(len(self.layers)) for kind in ("key", "value")]

    def _beside(self, batch: Dim, rows: int) -> list[tuple[TensorSpec, torch.Tensor]]:
        axis = self._encoded_axis()
        found = []
        for name, tensor in zip(self._cross_names(), self.cross, strict=True):
            dims = (batch, Dim(size=tensor.shape[1]), axis, Dim(size=tensor.shape[3]))
            found.append((TensorSpec(name, "float32", dims), tensor.expand(rows, -1, -1, -1).contiguous()))
        if self.has_mask:
            mask = self.row[MASK].expand(rows, -1).contiguous()
            found.append((TensorSpec(MASK, str(mask.dtype).removeprefix("torch."), (batch, axis)), mask))
        if self.makes_mask:
            found.append(
                (TensorSpec(CROSS_MASK, "int64", (batch, axis)), torch.ones(rows, self.encoded).to(torch.int64))
            )
        return found

    def _encoded_axis(self) -> Dim:
        """Constant for an encoder that always reads as much; else up to what the longest input gives."""
        longest = self.row
        for spec in self.inputs:
            for axis, dim in enumerate(spec.dims[1:], start=1):
                if dim.is_constant:
                    continue
                if dim.largest is None:
                    return Dim(symbol="encoded", min=1, max=None)
                if self.row[spec.name].shape[axis] == self.encoded:  # a position for each that is read
                    return Dim(symbol="encoded", min=1, max=dim.largest)
                places = torch.arange(dim.largest) % longest[spec.name].shape[axis]
                longest = {**longest, spec.name: longest[spec.name].index_select(axis, places)}
        if longest is self.row:
            return Dim(size=self.encoded)
        if self.most is None:
            self.most = self._encoded(longest)
        return Dim(symbol="encoded", min=1, max=self.most)

    def _encoded(self, row: Tensors) -> int:
        """How many positions the encoder gives: strides and edges of convolutions make that no share of the length."""
        with torch.no_grad():
            given = {self.tokens: torch.tensor([[self.start]])}
            states = self.model(**row, **given, use_cache=False, return_dict=True).encoder_last_hidden_state
        return states.shape[1]

    def _logits(
        self, model: torch.nn.Module, ids: torch.Tensor, cache: Cache, options: Tensors, beside: Tensors
    ) -> torch.Tensor:
        cross = [beside[name] for name in self._cross_names()]
        # Of the encoder's states nothing is read but how many there are.
        states = torch.zeros(ids.shape[0], cross[0].shape[2], self.width)
        given = {MASK: beside[MASK]} if self.has_mask else {}
        with crossing(model, beside.get(CROSS_MASK)):
            result = model(
                encoder_outputs=Encoded(last_hidden_state=states),
                **given,
                **{self.tokens: ids},
                past_key_values=EncoderDecoderCache(cache, growing_cache(cross)),
                use_cache=True,
                return_dict=True,
                **{name: value for name, value in options.items() if name in self.parameters},
            )
        return result.logits[:, -1:]

    def _whole(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(**self.row, **{self.tokens: ids}, use_cache=False, return_dict=True).logits

    def _vocabulary(self) -> int:
        return self.vocabulary


@dataclass
class Told:
    """What a decoder was told of the encoder's positions: the mask of those to attend to, (batch, encoded)."""

    mask: torch.Tensor | None = None


@contextlib.contextmanager
def crossing(model: torch.nn.Module, mask: torch.Tensor | None = None) -> Iterator[Told]:
    """See the mask that the model gives its decoder for the encoder's positions; with `mask`, give it this one."""
    told = Told()

    def before(module: torch.nn.Module, args: tuple[object, ...], given: dict[str, object]) -> object:
        seen = given.get(CROSS_MASK)
        told.mask = seen if isinstance(seen, torch.Tensor) else None
        return None if mask is None else (args, {**given, CROSS_MASK: mask})

    decoder: torch.nn.Module = model.get_decoder()
    handle = decoder.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield told
    finally:
        handle.remove()


def _decoder_of(model: torch.nn.Module) -> torch.nn.Module:
    found: torch.nn.Module = model.get_decoder()
    return found


def _no_encoder(model: torch.nn.Module) -> UnsupportedError:
    return UnsupportedError(
        f"{type(model).__name__} keeps no keys and values of what its encoder read, so there is no cache to export.\n"
        "Remedy: export it for another task (--task feature-extraction)."
    )
