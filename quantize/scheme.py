"""How a weight is stored, and the plan that says so for each weight of a model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import RequestError

PLAN_VERSION = 1
_BITS = (8, 6, 4, 2)
_GRANULARITIES = ("tensor", "channel", "block")
_FORMS = ("linear", "palette")
_ACTIVATIONS = ("none", "dynamic", "static")
_ROUNDINGS = ("nearest", "gptq")


@dataclass(frozen=True)
class Scheme:
    """How one weight is stored, and what its layer does with its input.

    bits: of a stored integer: 8 or 4; palettes also 6 or 2.
    granularity: one scale a `tensor`, a `channel` (a row of the weight), or a `block` of `block` inputs of a row; of a
        palette, one table a tensor, a row, or `block` neighbouring rows.
    symmetric: without zero points.
    form: `linear` (integer times scale) or `palette` (index into a table of 2^bits numbers).
    activations: whether the layer's input is rounded to 8 bits too: `none`, `dynamic` (by each row's own range, as it
        runs) or `static` (by a range that calibration found).
    """

    bits: int
    granularity: str = "channel"
    block: int | None = None
    symmetric: bool = True
    form: str = "linear"
    activations: str = "none"

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.bits, _BITS, "bits"),
            (self.granularity, _GRANULARITIES, "granularity"),
            (self.symmetric, (True, False), "symmetric"),
            (self.form, _FORMS, "form"),
            (self.activations, _ACTIVATIONS, "activations"),
        ):
            if value not in known or type(value) is not type(known[0]):
                raise RequestError(f"A scheme's {what} is one of {', '.join(map(str, known))}, not {value!r}.")
        if (self.granularity == "block") != (self.block is not None):
            raise RequestError("A scheme has a block size when, and only when, its granularity is 'block'.")
        if self.block is not None and (type(self.block) is not int or self.block < 1):
            raise RequestError(f"A block is a positive number of weights, not {self.block!r}.")
        if self.form == "linear" and self.bits in (6, 2):
            raise RequestError(f"{self.bits} bits exist as a palette only; linear schemes have 8 or 4.")
        if self.form == "palette" and not self.symmetric:
            raise RequestError("A palette has no zero points: its numbers lie where the weights do.")

    def __str__(self) -> str:
        """`int8 per channel, dynamic activations`."""
        kind = "palette" if self.form == "palette" else "int"
        where = f"block of {self.block}" if self.granularity == "block" else self.granularity
        zero = "" if self.symmetric else ", asymmetric"
        inputs = "" if self.activations == "none" else f", {self.activations} activations"
        return f"{kind}{self.bits} per {where}{zero}{inputs}"

    def to_json(self) -> dict[str, Any]:
        """The fields that differ from a scheme's defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {key: value for key, value in dataclasses.asdict(self).items() if value != defaults[key]}


@dataclass(frozen=True)
class Plan:
    """Which weight is stored how. Weights that are not named stay as they are.

    weights: parameter name, as the user's model names it -> scheme.
    smoothing: 0..1, how much of the unevenness of a layer's input channels its weight takes over before inputs are
        rounded (SmoothQuant, arXiv:2211.10438; its alpha); None: none.
    rounding: `nearest`, or `gptq` (arXiv:2210.17323), which rounds each weight so that the layer's output stays.
    """

    weights: Mapping[str, Scheme]
    smoothing: float | None = None
    rounding: str = "gptq"

    def __post_init__(self) -> None:
        if self.rounding not in _ROUNDINGS:
            raise RequestError(f"Rounding is one of {', '.join(_ROUNDINGS)}, not {self.rounding!r}.")
        smoothing = self.smoothing
        if smoothing is not None and not (isinstance(smoothing, (int, float)) and 0 <= smoothing <= 1):
            raise RequestError(f"Smoothing is between 0 and 1, not {smoothing!r}.")

    @property
    def precision(self) -> str:
        """What the manifest calls an artifact of this plan: `int8`, `int4`, ... or `mixed`."""
        bits = {scheme.bits for scheme in self.weights.values()}
        return f"int{bits.pop()}" if len(bits) == 1 and bits <= {8, 6, 4} else "mixed"

    def replace(self, changes: Mapping[str, Scheme | None]) -> Plan:
        """The plan with other schemes for some weights; None leaves a weight as it is."""
        weights = {**self.weights, **changes}
        return dataclasses.replace(
            self, weights={name: scheme for name, scheme in weights.items() if scheme is not None}
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "plan_version": PLAN_VERSION,
            "smoothing": self.smoothing,
            "rounding": self.rounding,
            "weights": {name: scheme.to_json() for name, scheme in sorted(self.weights.items())},
        }

    def dumps(self) -> str:
        return json.dumps(self.to_json(), indent=2) + "\n"

    @classmethod
    def from_json(cls, document: Any) -> Plan:
        """Read a plan.

        Raises:
            RequestError: what is wrong with it.
        """
        if not isinstance(document, dict) or not isinstance(document.get("weights"), dict):
            raise RequestError("A quantization plan is a JSON object with 'plan_version' and 'weights'.")
        version = document.get("plan_version")
        if version != PLAN_VERSION:
            raise RequestError(f"This palmtop reads plans of version {PLAN_VERSION}, not {version!r}.")
        unknown = set(document) - {"plan_version", "smoothing", "rounding", "weights"}
        if unknown:
            raise RequestError(f"A quantization plan has no field {', '.join(sorted(unknown))}.")
        weights = {}
        for name, entry in document["weights"].items():
            try:
                weights[name] = Scheme(**entry)
            except TypeError as error:
                raise RequestError(f"{name}: its scheme cannot be read: {error}.") from error
            except RequestError as error:
                raise RequestError(f"{name}: {error}") from error
        return cls(weights, document.get("smoothing"), document.get("rounding", "gptq"))

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan's file. Raises RequestError when it is not one."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RequestError(f"Cannot read the plan {path}: {error.strerror}.") from error
        except ValueError as error:
            raise RequestError(f"{path} is not JSON: {error}.") from error
        return cls.from_json(document)


@dataclass(frozen=True)
class Preset:
    """A plan's rule: a scheme for layers, one for embedding tables, and the agreement an artifact must keep."""

    layer: Scheme
    embedding: Scheme
    convolution: Scheme
    min_agreement: float
    smoothing: float | None = None


# `--quantize int8|int4`. Embeddings have short blocks: a row's one large channel would cost all others their digits.
PRESETS: dict[str, Preset] = {
    "int8": Preset(
        layer=Scheme(8, activations="dynamic"),
        embedding=Scheme(8, "block", 128),
        convolution=Scheme(8, activations="dynamic"),
        min_agreement=0.995,
        smoothing=0.75,
    ),
    "int4": Preset(
        layer=Scheme(4, "block", 32, activations="dynamic"),
        embedding=Scheme(4, "block", 32),
        convolution=Scheme(8, activations="dynamic"),
        min_agreement=0.98,
        smoothing=0.5,
    ),
}
