"""Which of a plan's schemes a Core ML program can hold, and from which system on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from ...quantize.weights import QuantizedWeight
from ...runtime.errors import RequestError
from ..modules import user_path

_PREFIX = "quantized__"


def oldest_ios(quantized: Mapping[str, QuantizedWeight]) -> int:
    """The first iOS that has the operations for these weights: 16 for 8 bits a channel and for one table, else 18.

    Raises:
        RequestError: Core ML cannot hold a scheme; names the nearest that it can.
    """
    return max((_oldest_for(name, weight) for name, weight in quantized.items()), default=16)


def check_system(quantized: Mapping[str, QuantizedWeight], ios: str) -> None:
    """Refuse schemes that a system cannot hold. Raises RequestError naming the nearest that it can."""
    for name, weight in quantized.items():
        needed = _oldest_for(name, weight)
        if needed > int(ios):
            nearest = "int8 per channel" if weight.palette is None else f"palette{weight.scheme.bits} per tensor"
            static = weight.scheme.activations == "static" and int(ios) < 17
            raise RequestError(
                f"{user_path(name)}: {weight.scheme} needs iOS {needed}, not {ios}. "
                f"The nearest scheme there: {nearest}{' without static activations' if static else ''}."
            )


def value_names(quantized: Mapping[str, QuantizedWeight]) -> dict[str, str]:
    """Parameter -> a name for its weight in a program. What follows a further `__` tells values of one weight apart."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for parameter in sorted(quantized):
        word = re.sub(r"[\W_]+", "_", user_path(parameter), flags=re.ASCII)
        number, name = 1, word
        while name in taken:
            number += 1
            name = f"{word}_{number}"
        taken.add(name)
        names[parameter] = _PREFIX + name
    return names


def parameter_of(value: str, names: Mapping[str, str]) -> str | None:
    """The parameter whose weight a value of a program is, by its name; `names` as `value_names` gave them."""
    base = "__".join(value.split("__")[:2])
    return next((parameter for parameter, name in names.items() if name == base), None)


def _oldest_for(name: str, weight: QuantizedWeight) -> int:
    scheme = weight.scheme
    kernel = math.prod(weight.shape[2:])
    if len(weight.shape) > 2 and weight.scales.shape[1] > 1 and weight.block % kernel:
        raise RequestError(
            f"{user_path(name)}: in Core ML a block of a convolution's weights is a number of whole input channels, of "
            f"{kernel} weights each; {scheme} has other blocks. The nearest: int{scheme.bits} per channel."
        )
    if weight.palette is not None:
        modern = len(weight.palette) > 1
    else:
        modern = scheme.bits == 4 or weight.scales.shape[1] > 1
    if modern:
        return 18
    return 17 if scheme.activations == "static" else 16
