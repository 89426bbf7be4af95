"""Reformer's positions, looked up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.exporters.utils import register_patch


@register_patch("dynamo", "transformers.models.reformer.modeling_reformer.AxialPositionEmbeddings.forward")
def positions_are_looked_up(original: Callable) -> Callable:
    """transformers <= 5.23: the table is cut to the columns that the largest position asks for before it is read.

    That size comes out of a tensor, and ExecuTorch has none like it. The whole table has the same rows.
    """

    def forward(self: Any, position_ids: torch.Tensor) -> torch.Tensor:
        axes = [weight.expand(*self.axial_pos_shape, weight.shape[-1]) for weight in self.weights]
        return torch.nn.functional.embedding(position_ids, torch.cat(axes, dim=-1).flatten(0, 1))

    return forward
