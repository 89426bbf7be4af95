"""Core ML's image inputs: a model that takes a picture's pixels, and does the last steps of its preparation itself.

What is folded into the program are the steps after the picture has its size: rescaling, normalising, the order of
channels. An app hands over a pixel buffer; what it still does (resizing, cropping) are the steps before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Program
from coremltools.proto import FeatureTypes_pb2

from ...runtime.manifest import Artifact

_SPACES = {"RGB": FeatureTypes_pb2.ImageFeatureType.RGB, "BGR": FeatureTypes_pb2.ImageFeatureType.BGR}


def fold_preparation(program: Program, artifact: Artifact) -> None:
    """Put what makes values of pixels (0 to 255) before the first reader of each image input, in fp32."""
    function = program.functions["main"]
    for name, image in artifact.image_inputs.items():
        pixels = function.inputs[name]
        first = function.operations[0]
        reader = next(operation for operation in pixels.child_ops if operation.scopes)
        with function:
            offset = np.array(image["offset"], np.float32).reshape(1, -1, 1, 1)
            scale = np.array(image["scale"], np.float32).reshape(1, -1, 1, 1)
            shifted = mb.sub(x=pixels, y=offset, name=f"{name}_shifted", before_op=first)
            values = mb.mul(x=shifted, y=scale, name=f"{name}_scaled", before_op=first)
            function.replace_uses_of_var_after_op(
                anchor_op=values.op, old_var=pixels, new_var=values, no_check_var_types=True
            )
        for made in (shifted.op, values.op, shifted.op.y.op, values.op.y.op):
            made.scopes = dict(reader.scopes)  # coremltools wants to know of each where it came from


def declare_images(spec: Any, artifact: Artifact) -> None:
    """Say in a finished model's description which inputs are images."""
    for feature in spec.description.input:
        image = artifact.image_inputs.get(feature.name)
        if image is None:
            continue
        feature.type.ClearField("multiArrayType")
        feature.type.imageType.width, feature.type.imageType.height = image["width"], image["height"]
        feature.type.imageType.colorSpace = _SPACES[image["colors"]]
