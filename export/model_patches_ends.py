"""Classifiers that read the state at a row's last end token, while they are traced.

transformers <= 5.23 takes the states of all end tokens by a mask (`states[mask, :]`), of which there are as many as the
values say, and then each row's last one: torch.export cannot know that there is one. Here it is looked up, row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers.exporters.utils import register_patch

_CLASSIFIERS = {
    "bart": "Bart",
    "bigbird_pegasus": "BigBirdPegasus",
    "mbart": "MBart",
    "mt5": "MT5",
    "mvp": "Mvp",
    "plbart": "PLBart",
    "t5": "T5",
    "umt5": "UMT5",
}
_PATHS = (
    f"transformers.models.{module}.modeling_{module}.{name}ForSequenceClassification.forward"
    for module, name in _CLASSIFIERS.items()
)


class LastMarked(TorchFunctionMode):
    """Inside the block `states[mask, :]` is one state a row, (batch, width): that of the mask's last true position.

    The models also check that rows have equally many ends, which is no matter where each is looked up for itself.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.unique_consecutive:
            return args[0][:1]
        if func is torch.Tensor.__getitem__ and isinstance(args[1], tuple) and _is_mask(args[1][0]):
            states, mask = args[0], args[1][0]
            last = torch.where(mask, torch.arange(mask.shape[1]), 0).amax(dim=1)
            return states[torch.arange(states.shape[0]), last]
        return func(*args, **(kwargs or {}))


def _is_mask(place: Any) -> bool:
    return isinstance(place, torch.Tensor) and place.dtype == torch.bool and place.dim() == 2


@register_patch("dynamo", *_PATHS)
def state_of_the_last_end(original: Callable) -> Callable:
    """One state a row, without a list of all ends."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with LastMarked():
            return original(self, *args, **kwargs)

    return forward
