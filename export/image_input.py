"""Which of a picture's preparation an artifact can do itself (see `targets/coreml_images.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..runtime.errors import RequestError
from ..runtime.manifest import TensorSpec


def image_input(preprocess: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> dict[str, dict[str, Any]]:
    """The manifest's `image_inputs` of an artifact: input -> what it does with pixels of 0 to 255.

    `colors`: the order of channels that the model was trained with. `height`, `width`: of the picture. `offset` and
    `scale`, one value a channel in that order: subtracted, then multiplied. `steps`: how many of `preprocess.image` are
    left to the app.

    Raises:
        RequestError: the model takes no pictures, or its last steps are others.
    """
    data = preprocess.get("image")
    spec = next((spec for spec in inputs if spec.name == "pixel_values"), None)
    if data is None or spec is None:
        raise RequestError("--image-input is for models whose checkpoint says how pictures are prepared.")
    steps = list(data["steps"])
    left = next((index for index, step in enumerate(steps) if step["step"] in _FOLDED), len(steps))
    mean, std, factor, flipped = [0.0] * 3, [1.0] * 3, 1.0, False
    for number, step in enumerate(steps[left:], start=left):
        kind = step["step"]
        if kind == "rescale" and number == left and not step.get("offset"):
            factor = step["factor"]
        elif kind == "normalize" and not flipped and mean == [0.0] * 3:
            mean, std = step["mean"], step["std"]
        elif kind == "flip_channels" and not flipped:
            flipped = True
        else:
            raise RequestError(
                f"--image-input: the last steps of preparing this model's pictures have a '{kind}', which an artifact "
                "cannot do there. Leave the option out: the input is then an array."
            )
    sides = [dim.constant for dim in spec.dims[1:]]
    if sides[0] != 3 or None in sides:
        raise RequestError("--image-input needs pictures of three channels and one size.")
    order = slice(None, None, -1) if flipped else slice(None)
    return {
        spec.name: {
            "colors": "BGR" if flipped else "RGB",
            "height": sides[1],
            "width": sides[2],
            "offset": [value / factor for value in mean][order],
            "scale": [factor / value for value in std][order],
            "steps": left,
        }
    }


_FOLDED = ("rescale", "normalize", "flip_channels")
