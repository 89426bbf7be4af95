"""Longformer, and LED's encoder, while they are traced: sparse attention as the dense one that it equals.

transformers <= 5.23 gathers the tokens with global attention into tensors as large as there happen to be such tokens,
and pads to a multiple of the window: sizes that depend on values, which torch.export refuses. Here each token's scores
are those of all tokens, with what is outside its window masked. The numbers are the same; work grows with the square of
the length, as in other models, which at the lengths of phones costs less than the sparse form's bookkeeping.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers.exporters.utils import register_patch

_MODULE = "transformers.models.longformer.modeling_longformer"
_LED = "transformers.models.led.modeling_led"


@register_patch("dynamo", f"{_MODULE}.LongformerSelfAttention.forward", f"{_LED}.LEDEncoderSelfAttention.forward")
def dense_attention(original: Callable) -> Callable:
    """Windows and global tokens as masks of dense attention; `attention_mask`: <0 masked, 0 local, >0 global."""

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        is_index_masked: torch.Tensor | None = None,
        is_index_global_attn: torch.Tensor | None = None,
        is_global_attn: bool | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor]:
        batch, length, width = hidden_states.shape

        def heads(projection: torch.nn.Module) -> torch.Tensor:
            split = projection(hidden_states).view(batch, length, self.num_heads, self.head_dim)
            return split.transpose(1, 2)

        least = torch.finfo(hidden_states.dtype).min

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
            scores = torch.matmul(query / math.sqrt(self.head_dim), key.transpose(-1, -2))
            return torch.matmul(scores.masked_fill(~seen, least).softmax(-1), value)

        places = torch.arange(length)
        near = (places[:, None] - places[None, :]).abs() <= self.one_sided_attn_window_size
        unmasked, everywhere = (attention_mask >= 0), (attention_mask > 0)
        seen = (near[None] & unmasked[:, None, :]) | everywhere[:, None, :]
        local = attend(heads(self.query), heads(self.key), heads(self.value), seen[:, None])
        local = local.masked_fill(~unmasked[:, None, :, None], 0.0)
        whole = attend(
            heads(self.query_global), heads(self.key_global), heads(self.value_global), unmasked[:, None, None, :]
        )
        result = torch.where(everywhere[:, None, :, None], whole, local)
        return (result.transpose(1, 2).reshape(batch, length, width),)

    return forward


@register_patch("dynamo", f"{_MODULE}.LongformerModel._pad_to_window_size")
def no_padding(original: Callable) -> Callable:
    """Dense attention takes every length."""

    def pad(
        self: Any, input_ids: Any, attention_mask: Any, token_type_ids: Any, position_ids: Any, *others: Any
    ) -> tuple[Any, ...]:
        embeddings, _pad_token = others
        return 0, input_ids, attention_mask, token_type_ids, position_ids, embeddings

    def pad_by_name(self: Any, **given: Any) -> tuple[Any, ...]:
        names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
        return 0, *(given[name] for name in names)

    return lambda self, *args, **kwargs: pad(self, *args) if args else pad_by_name(self, **kwargs)


@register_patch("dynamo", f"{_LED}.LEDEncoder._pad_to_window_size")
def no_padding_in_led(original: Callable) -> Callable:
    """The same of LED's encoder."""

    def pad(self: Any, input_ids: Any, attention_mask: Any, inputs_embeds: Any, pad_token_id: Any) -> tuple[Any, ...]:
        return 0, input_ids, attention_mask, inputs_embeds

    return pad


@register_patch("dynamo", f"{_MODULE}._get_question_end_index")
def first_separator(original: Callable) -> Callable:
    """The first separator of each row, without a list of all of them."""

    def find(input_ids: torch.Tensor, sep_token_id: int) -> torch.Tensor:
        length = input_ids.shape[1]
        return torch.where(input_ids == sep_token_id, torch.arange(length), length).amin(dim=1)

    return find


@register_patch("dynamo", f"{_MODULE}.LongformerForMultipleChoice.forward")
def choices_together(original: Callable) -> Callable:
    """Global attention of all choices at once: transformers <= 5.23 goes through them in Python, so that there would
    always be as many as were traced."""

    def forward(self: Any, input_ids: Any = None, **given: Any) -> Any:
        if input_ids is not None and given.get("global_attention_mask") is None:
            rows = input_ids.reshape(-1, input_ids.shape[-1])
            end = first_separator(original)(rows, self.config.sep_token_id)
            later = torch.arange(input_ids.shape[-1]) > end[:, None] + 1  # two separators are between the texts
            given["global_attention_mask"] = later.reshape(input_ids.shape)
        return original(self, input_ids, **given)

    return forward
