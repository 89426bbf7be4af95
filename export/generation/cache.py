"""Key-value caches that a decoder takes as plain tensors and gives back as plain tensors.

A Transformers model reads and writes its cache through a `Cache` of layers. Ours hold the whole context in every layer:
where a model attends to a window of it only, its own mask says so, and cutting the cache to the window as Transformers
does would make the program depend on how many tokens were seen.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from .write_at import WRITE_AT


class GrowingLayer(CacheLayerMixin):
    """Keys and values of all positions so far, (batch, heads, past, depth); new ones are put behind them."""

    def __init__(self, keys: torch.Tensor | None = None, values: torch.Tensor | None = None):
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = keys is not None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to make: `update` takes what it is given."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, and give all keys and values."""
        if self.keys is None or self.values is None:
            self.keys, self.values = key_states, value_states
        else:
            self.keys = torch.cat([self.keys, key_states], dim=-2)
            self.values = torch.cat([self.values, value_states], dim=-2)
        self.is_initialized = True
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """How many positions are filled. Whether that is none is not asked: tracing would answer for good."""
        return 0 if self.keys is None else self.keys.shape[-2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class FixedLayer(CacheLayerMixin):
    """Keys and values of a whole context, (batch, heads, context, depth), of which `start` positions are filled.

    New ones are written behind those, into a new tensor: what came in is not changed.
    """

    is_compileable = True  # masks are made for every query, as Transformers does for caches of constant size

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, start: torch.Tensor):
        super().__init__()
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values
        self.start = start
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to make: the tensors are there."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write at `start`, and give the whole context, filled or not; the mask leaves out what is not."""
        self.keys = WRITE_AT(self.keys, key_states, self.start)
        self.values = WRITE_AT(self.values, value_states, self.start)
        return self.keys, self.values

    def get_seq_length(self) -> torch.Tensor:
        """How many positions were filled before this call, (1,)."""
        return self.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[-2], 0

    def get_max_length(self) -> int:
        return self.keys.shape[-2]


class ShiftingLayer(CacheLayerMixin):
    """Keys and values of a whole context, (batch, heads, context, depth), of which the last positions are filled.

    Everything moves to the left by as many positions as come: to the model this is padding on the left.
    """

    is_compileable = True

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, new: int):
        super().__init__()
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values
        self.new = new
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to make: the tensors are there."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, and drop as many at the beginning."""
        context = self.keys.shape[-2]  # counted from the end: so every format knows the size that is left
        self.keys = torch.cat([self.keys, key_states], dim=-2)[:, :, -context:]
        self.values = torch.cat([self.values, value_states], dim=-2)[:, :, -context:]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """How many positions are before the new ones."""
        return self.keys.shape[-2] - self.new

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[-2], 0

    def get_max_length(self) -> int:
        return self.keys.shape[-2]


def growing_cache(tensors: list[torch.Tensor]) -> Cache:
    """Of keys and values, layer by layer; empty: a cache that makes its layers as they are written."""
    if not tensors:
        return Cache(layer_class_to_replicate=GrowingLayer)
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    return Cache(layers=[GrowingLayer(keys, values) for keys, values in pairs])


def fixed_cache(tensors: list[torch.Tensor], start: torch.Tensor) -> Cache:
    """Of keys and values, layer by layer, of which `start` (1,) positions are filled."""
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    return Cache(layers=[FixedLayer(keys, values, start) for keys, values in pairs])


def shifting_cache(tensors: list[torch.Tensor], new: int) -> Cache:
    """Of keys and values, layer by layer, of which the last positions are filled; `new` ones are to come."""
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    return Cache(layers=[ShiftingLayer(keys, values, new) for keys, values in pairs])


def cache_tensors(cache: Cache) -> list[torch.Tensor]:
    """Keys and values, layer by layer."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
