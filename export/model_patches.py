"""Models whose code torch.export cannot follow as it is written, changed while they are traced.

Each patch goes through the registry of `transformers.exporters`, which applies it around a trace and undoes it
afterwards: the reference never runs with one. Each names what it is for and the versions it was needed with; a test
fails when it no longer is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.exporters.utils import register_patch

_UPSAMPLINGS = (
    "transformers.models.sew.modeling_sew.SEWUpsampling.forward",
    "transformers.models.sew_d.modeling_sew_d.SEWDUpsampling.forward",
)


@register_patch("dynamo", "transformers.models.sew.modeling_sew.SEWEncoder.forward")
@register_patch("dynamo", "transformers.models.sew_d.modeling_sew_d.SEWDEncoder.forward")
def sew_remembers_its_length(original: Callable) -> Callable:
    """transformers <= 5.23: SEW pads what it squeezed and stretched if that is shorter than before (`if a < b`).

    The traced branch then holds for half of all lengths alone, and no range of sizes can say so.
    """

    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.upsample.wanted_length = hidden_states.shape[1]
        try:
            return original(self, hidden_states, *args, **kwargs)
        finally:
            del self.upsample.wanted_length

    return forward


@register_patch("dynamo", *_UPSAMPLINGS)
def sew_stretches_to_its_length(original: Callable) -> Callable:
    """The other half of `sew_remembers_its_length`: zeros behind the stretched frames, as many as are wanted."""

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        stretched = original(self, hidden_states)
        zeros = stretched.new_zeros(stretched.shape[0], self.squeeze_factor, stretched.shape[2])
        return torch.cat([stretched, zeros], dim=1).index_select(1, torch.arange(self.wanted_length))

    return forward
