"""Pictures: a checkpoint's image processor makes a model's inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...runtime.errors import PalmtopError, RequestError
from ...runtime.golden import MOST_VALUES, Expected, GoldenCase
from ...runtime.manifest import Dim, TensorSpec
from ...runtime.vision import ImageProcessor, load_image
from ...runtime.vision.sizes import RULES
from ..reference import Reference
from ..source import Source
from . import Batches, Feeds, Inputs
from .image_steps import prove_processor
from .pictures import golden_photos, photo, photos, probes

# Where nothing says how large pictures are.
_USUAL_SIDE, _USUAL_PHOTO = 224, (480, 640)
# Beyond this many pixels a picture is large for a model: fewer cases prove it.
_LARGE = 200_000
_KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def image_inputs(
    source: Source,
    model: torch.nn.Module,
    takes: set[str],
    max_length: int | None = None,
    lengths: Sequence[int] | None = None,
) -> Inputs:
    """What a model is fed that takes pictures.

    Args:
        takes: the names of the parameters of its `forward`.
        max_length, lengths: are of text; pictures have none.

    Raises:
        RequestError: lengths were asked for, or the model does not take what its processor makes.
        UnsupportedError: the checkpoint's image processor cannot be expressed in steps.
    """
    if max_length is not None or lengths:
        raise RequestError(f"--max-length and --lengths are in tokens, and {source.id} takes no text.")
    made = picture_inputs(source, model, takes)
    example = made.feeds(photos()[:2])

    def batches() -> Batches:
        found = [("picture", made.feeds([photo(1, 150, 200)]))]
        if math.prod(made.values_shape) < _LARGE * 3:
            found += [(f"photo {index}", made.feeds([picture])) for index, picture in enumerate(photos()[2:])]
            found += [("batch of 3", made.feeds([photo(seed, 120, 90) for seed in (5, 6, 7)]))]
        return [*found, ("dark", made.feeds([photo(9, 90, 120).point(lambda value: value // 8)]))]

    def golden(reference: Reference) -> list[GoldenCase]:
        return [
            made.golden(reference, f"picture {index}", picture, path)
            for index, (path, picture) in enumerate(made.golden_files().items(), start=1)
        ]

    return Inputs(
        specs=made.specs(),
        example={name: torch.from_numpy(array) for name, array in example.items()},
        batches=batches,
        golden=golden,
        calibration=lambda path: [made.feeds([picture]) for picture in calibration_pictures(path)],
        lines=lambda lines: [(str(line), made.feeds([load_image(str(line))])) for line in lines],
        preprocess=made.preprocess(),
        write=made.write,
        notes=made.notes,
    )


@dataclass(frozen=True)
class PictureInputs:
    """Makes a model's inputs from pictures.

    data: `preprocess["image"]`; None where the checkpoint has no image processor: `values_shape` is then (channels,
    height, width) of what is made up. names: the inputs made of a picture, values first. hidden: how many patches there
    are, of a model that is told which of them it may not look at.
    """

    data: dict[str, Any] | None
    names: tuple[str, ...]
    values_shape: tuple[int, ...]
    hidden: int | None = None
    notes: tuple[str, ...] = ()
    _cache: dict[tuple[int, ...], Feeds] = field(default_factory=dict, compare=False, repr=False)

    def feeds(self, pictures: Sequence[Image.Image]) -> Feeds:
        """A batch, one row a picture."""
        if self.data is not None:
            made = ImageProcessor(self.data)(list(pictures))
            found = {name: made[name] for name in self.names}
        else:
            found = {self.names[0]: np.stack([self._made_up(picture) for picture in pictures])}
            if len(self.names) > 1:
                found[self.names[1]] = np.ones((len(pictures), *self.values_shape[1:]), np.int64)
        if self.hidden is not None:
            random = np.random.default_rng(len(pictures) + int(np.asarray(pictures[0])[0, 0].sum()))
            found["bool_masked_pos"] = random.integers(0, 2, (len(pictures), self.hidden))
        return found

    def specs(self) -> tuple[TensorSpec, ...]:
        """Names, dtypes and axes of the inputs."""
        example = self.feeds(probes()[:1])
        batch = Dim(symbol="batch", min=1)
        return tuple(
            TensorSpec(name, str(array.dtype), (batch, *(Dim(size=size) for size in array.shape[1:])))
            for name, array in example.items()
        )

    def preprocess(self) -> dict[str, Any]:
        return {"image": self.data} if self.data is not None else {}

    def golden_files(self) -> dict[str, Image.Image]:
        """The pictures of the bundle's golden vectors, by their path in it."""
        return {f"golden/picture-{index}.png": picture for index, picture in enumerate(golden_photos(), start=1)}

    def golden(
        self, reference: Reference, name: str, picture: Image.Image, path: str, more: Feeds | None = None
    ) -> GoldenCase:
        """A golden vector of a picture, whose file is `path` in the bundle. `more`: inputs not made of it."""
        feeds = {**self.feeds([picture]), **(more or {})}
        outputs = reference.run(feeds)
        expected = {key: Expected.of(array, MOST_VALUES) for key, array in outputs.items()}
        if self.data is None:
            return GoldenCase(name, feeds, expected)
        return GoldenCase(name, feeds, expected, media=("image", path), made=self.names)

    def write(self, root: Path) -> None:
        """Write the pictures of the golden vectors into a bundle."""
        if self.data is None:
            return
        (root / "golden").mkdir(exist_ok=True)
        for path, picture in self.golden_files().items():
            picture.save(root / path, optimize=False)

    def _made_up(self, picture: Image.Image) -> np.ndarray:
        """A picture as models usually take it: -1 to 1, grey where there is one channel."""
        channels, height, width = self.values_shape
        image = picture.convert("L" if channels == 1 else "RGB").resize((width, height), resample=2)
        pixels = np.asarray(image, np.float32).reshape(height, width, -1).transpose(2, 0, 1) / 127.5 - 1
        return np.resize(pixels, (channels, height, width)).astype(np.float32)


def picture_inputs(source: Source, model: torch.nn.Module, takes: set[str]) -> PictureInputs:
    """How the inputs of a model are made of pictures. `takes`: names of the parameters of its `forward`. Errors as in
    `image_inputs`."""
    hidden = hidden_patches(source) if source.task.name == "masked-im" and "bool_masked_pos" in takes else None
    processor = source.image_processor
    if processor is None:
        shape = _configured_shape(source)
        names = ("pixel_values",)
        size = " x ".join(map(str, reversed(shape[1:])))
        note = (
            f"{source.id} has no preprocessor_config.json, so the bundle does not say how pictures are prepared: it "
            f"takes finished arrays, of {size} pixels."
        )
        return PictureInputs(None, names, shape, hidden, (note,))
    data = prove_processor(processor, source.id).data
    values, *masks = data["inputs"]
    if values not in takes:
        raise RequestError(f"{source.id} takes {', '.join(sorted(takes))}, and its image processor makes {values}.")
    data, notes = fixed_size(source, {**data, "inputs": [values, *(name for name in masks if name in takes)]})
    names = tuple(data["inputs"])
    shape = ImageProcessor(data)(list(probes()[:1]))[values].shape[1:]
    return PictureInputs(data, names, shape, hidden, notes)


def fixed_size(source: Source, data: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The data so that every picture becomes one size, and what the user should know about that.

    Processors that keep proportions make pictures of many sizes. A model that is told by a mask where the picture ends
    gets it padded to the largest of them, as a batch of such pictures is; any other gets it resized.
    """
    processor = ImageProcessor({**data, "inputs": data["inputs"][:1]})
    shapes = {processor.prepare(picture).values.shape for picture in (*probes(), *photos())}
    if len(shapes) == 1:
        return data, ()
    steps = list(data["steps"])
    place = next((index for index, step in enumerate(steps) if step["step"] == "resize"), None)
    resize: dict[str, Any] = steps[place] if place is not None else {"resample": "bilinear", "rule": None}
    if len(data["inputs"]) > 1 and resize.get("longest"):
        unit = int(resize.get("multiple", 1))
        side = int(resize["longest"]) // unit * unit
        steps.append({"step": "pad", "height": side, "width": side, "position": "start"})
        return {**data, "steps": steps}, (
            f"Pictures keep their proportions and are padded to {side} x {side} pixels, with a mask.",
        )
    height, width = _usual_size(source, resize)
    exact = {"step": "resize", "rule": "exact", "height": height, "width": width, "resample": resize["resample"]}
    if place is None:
        steps.insert(0, exact)
    else:
        steps[place] = exact
    note = (
        f"The checkpoint's image processor keeps a picture's proportions, and artifacts take one size: pictures are "
        f"resized to {width} x {height} pixels whatever their shape."
    )
    return {**data, "steps": steps}, (note,)


def _usual_size(source: Source, resize: dict[str, Any]) -> tuple[int, int]:
    """Height and width for pictures of a model that could take many: its own, or that of a photograph."""
    own = _sides(getattr(source.config, "image_size", None))
    if own is not None:
        return own
    if resize.get("height"):
        height, width = resize["height"], resize["width"]
    elif resize["rule"] in RULES and resize["rule"] != "multiple":
        return RULES[resize["rule"]](_USUAL_PHOTO, resize)
    else:
        height, width = _USUAL_PHOTO
    unit = resize.get("multiple") or 1
    return height // unit * unit, width // unit * unit


def hidden_patches(source: Source) -> int:
    """Of how many patches a model is told which it may not look at."""
    size, patch = _sides(getattr(source.config, "image_size", None)), _sides(getattr(source.config, "patch_size", None))
    if size is None or patch is None:
        raise RequestError(f"{source.id}: its config states no image_size and patch_size to mask patches by.")
    return (size[0] // patch[0]) * (size[1] // patch[1])


def _configured_shape(source: Source) -> tuple[int, int, int]:
    """Channels, height and width that the configuration states, or the usual ones."""
    configs = [source.config, *(getattr(source.config, name, None) for name in ("vision_config", "encoder"))]
    size, channels = None, None
    for config in configs:
        size = size or _sides(getattr(config, "image_size", None))
        channels = channels or getattr(config, "num_channels", None)
    height, width = size or (_USUAL_SIDE, _USUAL_SIDE)
    return (channels if isinstance(channels, int) else 3), height, width


def _sides(size: Any) -> tuple[int, int] | None:
    """A size in a configuration: a number, or height and width."""
    if isinstance(size, int) and size > 0:
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return size[0], size[1]
    return None


def calibration_pictures(path: Path | None) -> list[Image.Image]:
    """The pictures of a folder, a picture, or those that a text file names, one a line; None: palmtop's own.

    Raises:
        RequestError: there is nothing, or a file that is no picture.
    """
    if path is None:
        return [*photos(), *probes()]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _KINDS)
    elif path.suffix.lower() in _KINDS:
        files = [path]
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{path} cannot be read: {error}.") from error
        files = [path.parent / line.strip() for line in lines if line.strip()]
    if not files:
        raise RequestError(f"{path} holds no pictures ({', '.join(_KINDS)}).")
    try:
        return [load_image(file) for file in files[:: max(len(files) // 500, 1)]]
    except PalmtopError as error:
        raise RequestError(f"{path}: {error}") from error
