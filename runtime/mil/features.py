"""The interface that a model declares (`FeatureDescription`), and checking what a caller feeds against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DamagedError, RequestError
from .images import image_to_tensor
from .schema import ARRAY_DATA_TYPES, COLOR_SPACES
from .types import HELD, TensorType, Type


class ShapeError(RequestError, RuntimeError):
    """A value of a shape that the model does not allow. Also a RuntimeError, which is what Core ML raises."""


@dataclass(frozen=True)
class Feature:
    """One input, output or state of a model.

    `kind` is "tensor", "image", "state", "label" (string or integer) or "dictionary". `shape` has None for each
    flexible dimension; when flexible, `ranges` gives (lowest, highest or None) for every dimension or `enumerated` the
    allowed shapes. For images the shape is that of the tensor in the program: (1, channels, height, width).
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int | None, ...] | None
    default_shape: tuple[int, ...] | None = None
    ranges: tuple[tuple[int, int | None], ...] | None = None
    enumerated: tuple[tuple[int, ...], ...] | None = None
    color_space: str | None = None
    optional: bool = False
    default: float | None = None

    @property
    def fixed_shape(self) -> tuple[int, ...] | None:
        """The shape, or None when any dimension is flexible."""
        if self.shape is None or None in self.shape:
            return None
        return tuple(d for d in self.shape if d is not None)

    def describe_shape(self) -> str:
        """The allowed shapes in words."""
        if self.enumerated:
            return "one of " + ", ".join(str(list(s)) for s in self.enumerated)
        if self.ranges:
            return str([lo if lo == hi else f"{lo}..{'' if hi is None else hi}" for lo, hi in self.ranges]).replace(
                "'", ""
            )
        return str([("any" if d is None else d) for d in self.shape or ()]).replace("'", "")

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Why `shape` is not allowed, in the words of Core ML, which people search for (empty where there are none)."""
        if self.enumerated:
            return f"MultiArray Shape ({' x '.join(map(str, shape))}) was not in enumerated set of allowed shapes"
        if self.ranges and len(shape) == len(self.ranges):
            for i, ((low, high), size) in enumerate(zip(self.ranges, shape, strict=True)):
                if size < low or (high is not None and size > high):
                    allowed = f"{low}..{'' if high is None else high}"
                    return f"Size ({size}) of dimension ({i}) is not in allowed range ({allowed})"
        return ""

    def allows(self, shape: tuple[int, ...]) -> bool:
        """Whether a value of this shape may be fed."""
        if self.shape is None:
            return True
        if len(shape) != len(self.shape):
            return False
        if any(d is not None and d != given for d, given in zip(self.shape, shape, strict=True)):
            return False
        if self.enumerated:
            return shape in self.enumerated
        if self.ranges:
            return all(lo <= d and (hi is None or d <= hi) for (lo, hi), d in zip(self.ranges, shape, strict=True))
        return True


def _range(proto: Any) -> tuple[int, int | None]:
    return int(proto.lowerBound), (int(proto.upperBound) if proto.upperBound >= 0 else None)


def _array_feature(name: str, kind: str, array: Any, declared: Type | None, optional: bool) -> Feature:
    dtype = ARRAY_DATA_TYPES.get(array.dataType)
    if dtype is None:
        raise DamagedError(f"feature {name}: unknown array type number {array.dataType}")
    shape: tuple[int | None, ...] | None = tuple(int(d) for d in array.shape) or None
    default_shape = tuple(int(d) for d in array.shape) or None
    if isinstance(declared, TensorType):
        dtype, shape = declared.dtype, declared.shape
    flexibility = array.WhichOneof("ShapeFlexibility")
    ranges = enumerated = None
    if flexibility == "shapeRange":
        ranges = tuple(_range(r) for r in array.shapeRange.sizeRanges)
    elif flexibility == "enumeratedShapes":
        enumerated = tuple(tuple(int(d) for d in s.shape) for s in array.enumeratedShapes.shapes)
    elif shape is not None and None in shape and default_shape is not None and len(default_shape) == len(shape):
        # Flexible in the program but not in the description: only the described shape may be fed.
        ranges = tuple((d, d) for d in default_shape)
    for other in [ranges] if ranges else enumerated or []:
        if shape is not None and len(other) != len(shape):
            raise DamagedError(f"feature {name}: its allowed shapes do not have the rank of {list(shape)}")
    default = array.WhichOneof("defaultOptionalValue")
    return Feature(
        name, kind, dtype, shape, default_shape, ranges, enumerated, None, optional,
        getattr(array, default) if default else None,
    )  # fmt: skip


def _image_feature(name: str, image: Any, declared: Type | None, optional: bool) -> Feature:
    color_space = COLOR_SPACES.get(image.colorSpace)
    if color_space is None:
        raise DamagedError(f"feature {name}: unknown color space number {image.colorSpace}")
    channels = 1 if color_space.startswith("GRAYSCALE") else 3
    shape: tuple[int | None, ...] = (1, channels, int(image.height), int(image.width))
    default_shape = (1, channels, int(image.height), int(image.width))
    dtype = "fp16" if color_space == "GRAYSCALE_FLOAT16" else "fp32"
    if isinstance(declared, TensorType):
        dtype, shape = declared.dtype, declared.shape
    flexibility = image.WhichOneof("SizeFlexibility")
    ranges = enumerated = None
    if flexibility == "imageSizeRange":
        sides = _range(image.imageSizeRange.heightRange), _range(image.imageSizeRange.widthRange)
        ranges = ((1, 1), (channels, channels), *sides)
    elif flexibility == "enumeratedSizes":
        enumerated = tuple((1, channels, int(s.height), int(s.width)) for s in image.enumeratedSizes.sizes)
    return Feature(name, "image", dtype, shape, default_shape, ranges, enumerated, color_space, optional)


def read_feature(proto: Any, declared: Type | None) -> Feature:
    """The feature in a `FeatureDescription` message; `declared` is the type that the program gives the value."""
    name, type = proto.name, proto.type
    kind = type.WhichOneof("Type")
    if kind == "multiArrayType":
        return _array_feature(name, "tensor", type.multiArrayType, declared, type.isOptional)
    if kind == "stateType":
        return _array_feature(name, "state", type.stateType.arrayType, declared, False)
    if kind == "imageType":
        return _image_feature(name, type.imageType, declared, type.isOptional)
    if kind in ("int64Type", "stringType"):
        return Feature(name, "label", "int64" if kind == "int64Type" else "string", ())
    if kind == "dictionaryType":
        return Feature(name, "dictionary", "fp32", None)
    if kind == "doubleType":
        return Feature(name, "tensor", "fp64", ())
    raise DamagedError(f"feature {name}: has type {kind}, which an ML Program cannot have")


def _converted(feature: Feature, array: np.ndarray) -> np.ndarray:
    """The array in the dtype that holds the feature; conversions that lose more than float precision are refused."""
    held = HELD[feature.dtype]
    if array.dtype == held:
        return array
    kind = array.dtype.kind
    if kind not in "fiub":
        raise RequestError(f"input {feature.name}: expected {feature.dtype}, got an array of {array.dtype}")
    if held.kind == "f":
        return array.astype(held)
    if held.kind == "b":
        if kind != "b" and not np.isin(array, (0, 1)).all():
            raise RequestError(f"input {feature.name}: expected bool, got {array.dtype} with values other than 0 and 1")
        return array.astype(held)
    if kind == "f" and not (np.isfinite(array).all() and (array == np.trunc(array)).all()):
        raise RequestError(
            f"input {feature.name}: expected {feature.dtype}, got {array.dtype} that are not whole numbers"
        )
    limits = np.iinfo(held)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise RequestError(f"input {feature.name}: values of {array.dtype} do not fit in {feature.dtype}")
    return array.astype(held)


def feed(feature: Feature, value: Any) -> np.ndarray:
    """`value` as the array that enters the program: held dtype, checked shape. Raises RequestError naming the input
    (ShapeError for a wrong shape).

    Integer arrays of another width and floats that are whole numbers are accepted for integer inputs, as Core ML does.
    """
    if feature.kind == "image" and hasattr(value, "mode"):
        value = image_to_tensor(feature.name, value, feature.color_space or "RGB")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise RequestError(f"input {feature.name}: not an array ({error})") from error
    if feature.shape == () and array.shape == (1,):
        array = array.reshape(())  # Core ML has no rank 0 at its interface
    array = _converted(feature, array)
    if not feature.allows(array.shape):
        refusal = feature.refusal(array.shape)
        raise ShapeError(
            f"input {feature.name}: expected the shape {feature.describe_shape()}, got {list(array.shape)}"
            + (f" ({refusal})" if refusal else "")
        )
    return array
