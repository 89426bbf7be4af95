"""From a checkpoint's image processor to steps that run without it: proposed from its settings, kept when proven.

A processor is Python code with settings. What the settings mean is read in all the ways that processors are known to
read them; each reading is a list of steps (`runtime/vision/steps.py`), and the one that gives what the processor gives
on every picture of `pictures.probes` is the bundle's. No processor and no architecture is named here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ...runtime.errors import PalmtopError, UnsupportedError
from ...runtime.vision import ImageProcessor
from ...runtime.vision.steps import FILTERS
from .pictures import probes

Step = dict[str, Any]

_FILTER_NAMES = {number: name for name, number in FILTERS.items()}


@dataclass(frozen=True)
class Proven:
    """`preprocess["image"]` that was proven, and how far from the processor it is at most, in levels of 255."""

    data: dict[str, Any]
    levels: float


def prove_processor(processor: Any, name: str) -> Proven:
    """The data that does what a `transformers` image processor does.

    Raises:
        UnsupportedError: no list of known steps gives what the processor gives.
    """
    pictures = probes()
    try:
        wanted = [_processed(processor, [picture]) for picture in pictures]
    except Exception as error:  # the processor is other people's code
        raise _refused(processor, name, f"it fails on an ordinary picture: {error}") from error
    inputs = _input_names(processor, name, wanted[0])
    settings = _settings(processor)
    allowed = _one_level(settings)
    best: Proven | None = None
    for steps in proposals(settings):
        data = {"inputs": inputs, "steps": steps, "transparent": "drop"}
        levels = _largest_error(data, pictures, wanted, allowed)
        if levels is not None and (best is None or levels < best.levels):
            best = Proven(data, levels)
            if levels == 0:
                break
    if best is None or not _same_batch(processor, best.data, pictures[:2], allowed):
        raise _refused(processor, name, "none of the steps that bundles know does what it does")
    return Proven({**best.data, "transparent": _transparency(processor, best.data)}, best.levels)


def proposals(settings: dict[str, Any]) -> Iterator[list[Step]]:
    """All readings of a processor's settings, the usual ones first."""
    patch = settings.get("patch_size")
    if settings.get("max_patches") and patch:
        cut = {"step": "patches", "height": patch["height"], "width": patch["width"], "most": settings["max_patches"]}
        yield [*([{"step": "standardize"}] if settings.get("do_normalize") else []), cut]
        return
    for shape in _shapes(settings):
        for colours in _colours(settings):
            for ground in _grounds(settings):
                yield [*shape, *colours, *ground]
                if ground:
                    yield [*shape, *ground, *colours]


def _shapes(settings: dict[str, Any]) -> Iterator[list[Step]]:
    """How size and shape change: resizing and cropping."""
    crop = settings.get("crop_size") if settings.get("do_center_crop") else None
    crops: list[list[Step]] = [[]]
    if crop and "height" in crop:
        crops.insert(0, [{"step": "center_crop", "height": crop["height"], "width": crop["width"]}])
    elif crop and "shortest_edge" in crop:
        crops.insert(0, [{"step": "center_crop", "height": crop["shortest_edge"], "width": crop["shortest_edge"]}])
    resizes = list(_resizes(settings)) if settings.get("do_resize") else [[]]
    for cropping in crops:
        for resizing in resizes:
            yield [*resizing, *cropping]
    size = settings.get("size") or {}
    if crop and "height" in crop and "height" in size and settings.get("do_resize"):
        shares = {f"{side}_share": size[side] / crop[side] for side in ("height", "width")}
        yield [{"step": "center_crop", **shares}, _resize(settings, "exact", **_sides(size))]


def _resizes(settings: dict[str, Any]) -> Iterator[list[Step]]:
    size = {key: value for key, value in (settings.get("size") or {}).items() if value}
    unit = settings.get("size_divisor")
    edge, longest = size.get("shortest_edge"), size.get("longest_edge")
    if settings.get("do_align_long_axis") or settings.get("do_thumbnail"):
        yield _page(settings, size)
    if settings.get("ensure_multiple_of") is not None and "height" in size:
        aspect = bool(settings.get("keep_aspect_ratio"))
        unit = settings["ensure_multiple_of"]
        yield [_resize(settings, "nearest", **_sides(size), multiple=unit, keep_aspect_ratio=aspect)]
    if settings.get("crop_pct"):
        yield from _scaled_and_cropped(settings, size)
    if unit and not size:
        yield [_resize(settings, "multiple", multiple=unit, rounding="down")]
    if edge:
        bounds = {"edge": edge, **({"longest": longest} if longest else {})}
        if unit:
            for rounding in ("up", "down"):
                yield [_resize(settings, "shortest_edge", **bounds, multiple=unit, rounding=rounding)]
            yield [_resize(settings, "scaled", edge=edge, longest=int(1333 / 800 * edge), multiple=unit)]
        yield [_resize(settings, "shortest_edge", **bounds)]
        if longest:
            yield [_resize(settings, "shortest_edge", **bounds, multiple=16, rounding="down")]
        yield [_resize(settings, "shortest_edge", edge=int((256 / 224) * edge))]
        yield [_resize(settings, "exact", height=edge, width=edge)]
    if "max_height" in size and "max_width" in size:
        yield [_resize(settings, "within", height=size["max_height"], width=size["max_width"])]
    if "height" in size and "width" in size:
        yield [_resize(settings, "exact", **_sides(size))]
        if unit:
            yield [_resize(settings, "nearest", **_sides(size), multiple=unit, keep_aspect_ratio=False)]
    yield []


def _page(settings: dict[str, Any], size: dict[str, int]) -> list[Step]:
    """A page of a document: turned as the model wants it, shrunk into its size."""
    sides = _sides(size)
    steps: list[Step] = [{"step": "turn", **sides}] if settings.get("do_align_long_axis") else []
    steps.append(_resize(settings, "shortest_edge", edge=min(sides.values())))
    if settings.get("do_thumbnail"):
        steps.append(_resize(settings, "thumbnail", **sides))
    return steps


def _scaled_and_cropped(settings: dict[str, Any], size: dict[str, int]) -> Iterator[list[Step]]:
    """Resized to more than is wanted, of which the middle is kept: the share of it that is kept is `crop_pct`."""
    share = settings["crop_pct"]
    edge = size.get("shortest_edge") or (size["height"] if size.get("height") == size.get("width") else None)
    if edge:
        larger = _resize(settings, "shortest_edge", edge=int(edge / share))
        yield [larger]
        yield [larger, {"step": "center_crop", "height": edge, "width": edge}]
        yield [_resize(settings, "exact", height=edge, width=edge)]
    elif "height" in size:
        yield [_resize(settings, "exact", height=int(size["height"] / share), width=int(size["width"] / share))]


def _colours(settings: dict[str, Any]) -> Iterator[list[Step]]:
    """How values change."""
    steps: list[Step] = []
    if settings.get("do_rescale"):
        offset = {"offset": -1.0} if settings.get("rescale_offset") else {}
        steps.append({"step": "rescale", "factor": settings["rescale_factor"], **offset})
    mean, std = _per_channel(settings.get("image_mean")), _per_channel(settings.get("image_std"))
    scaled = steps
    if settings.get("do_normalize") and mean and std:
        steps = [*steps, {"step": "normalize", "mean": mean, "std": std}]
    if settings.get("include_top") and std:
        yield [*steps, {"step": "normalize", "mean": [0.0] * 3, "std": std}]
    if settings.get("do_flip_channel_order"):
        yield [*steps, {"step": "flip_channels"}]
        yield [*scaled, {"step": "flip_channels"}]
    yield steps
    if steps is not scaled:
        yield scaled


def _grounds(settings: dict[str, Any]) -> Iterator[list[Step]]:
    """What is put around the picture."""
    yield []
    if settings.get("do_pad"):
        for sides in (settings.get("pad_size"), settings.get("size")):
            if sides and sides.get("height") and sides.get("width"):
                for position in ("start", "center"):
                    yield [{"step": "pad", **_sides(sides), "position": position}]
        if settings.get("size_divisor"):
            for position in ("center", "start"):
                yield [{"step": "pad", "multiple": settings["size_divisor"], "position": position}]


def _resize(settings: dict[str, Any], rule: str, **parameters: Any) -> Step:
    number = settings.get("resample")
    resample = _FILTER_NAMES.get(FILTERS["bilinear"] if number is None else number, "bilinear")
    return {"step": "resize", "rule": rule, **parameters, "resample": resample}


def _sides(size: dict[str, int]) -> dict[str, int]:
    return {"height": int(size["height"]), "width": int(size["width"])}


def _per_channel(value: Any) -> list[float] | None:
    if value is None:
        return None
    return [float(entry) for entry in value] if isinstance(value, (list, tuple)) else [float(value)] * 3


def _settings(processor: Any) -> dict[str, Any]:
    """The processor's settings as plain values; sizes without the sides that they leave open."""
    found: dict[str, Any] = {}
    for key, value in processor.to_dict().items():
        if key.endswith("size") and value is not None and not isinstance(value, (int, float)):
            value = {side: length for side, length in dict(value).items() if length is not None}
        if key == "resample" and value is not None:
            value = int(value)
        found[key] = value
    return found


def _one_level(settings: dict[str, Any]) -> float:
    """What one level of 255 is, in values that the processor gives."""
    level = settings["rescale_factor"] if settings.get("do_rescale") and settings.get("rescale_factor") else 1.0
    std = _per_channel(settings.get("image_std"))
    return abs(level) / min(std) if settings.get("do_normalize") and std and not settings.get("max_patches") else level


def _processed(processor: Any, pictures: Sequence[Image.Image]) -> dict[str, np.ndarray]:
    found = processor(images=list(pictures), return_tensors="np")
    return {name: np.asarray(values) for name, values in found.items() if np.asarray(values).size}


def _input_names(processor: Any, name: str, found: dict[str, np.ndarray]) -> list[str]:
    """The inputs that it makes, values first."""
    known = (("pixel_values", "pixel_mask"), ("flattened_patches", "attention_mask"))
    for values, mask in known:
        if values in found and set(found) <= {values, mask}:
            if values == "pixel_values" and (found[values].ndim != 4 or found[values].shape[1] != 3):
                break
            return [values, *([mask] if mask in found else [])]
    shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in found.items())
    raise _refused(processor, name, f"it makes {shapes} of one picture")


def _largest_error(
    data: dict[str, Any], pictures: Sequence[Image.Image], wanted: Sequence[dict[str, np.ndarray]], level: float
) -> float | None:
    """The largest difference in levels of 255; None when it passes one level, or shapes or masks differ."""
    mine = ImageProcessor(data)
    largest = 0.0
    for picture, expected in zip(pictures, wanted, strict=True):
        try:
            found = mine([picture])
        except (PalmtopError, ValueError):
            return None
        for key, values in expected.items():
            if found[key].shape != values.shape:
                return None
            if values.size:
                error = float(np.abs(found[key].astype(np.float64) - values).max()) / level
                if not error <= (1.001 if key == data["inputs"][0] else 0):
                    return None
                largest = max(largest, error)
    return largest


def _same_batch(processor: Any, data: dict[str, Any], pictures: Sequence[Image.Image], level: float) -> bool:
    """Whether pictures of two sizes run together as the processor runs them; it may also refuse to."""
    try:
        wanted = _processed(processor, pictures)
    except (ValueError, TypeError):  # without padding they are no one array
        return True
    found = ImageProcessor(data)(pictures)
    return all(
        found[key].shape == values.shape and np.abs(found[key].astype(np.float64) - values).max() <= 1.001 * level
        for key, values in wanted.items()
    )


def _transparency(processor: Any, data: dict[str, Any]) -> str:
    """What the processor makes of a transparent image that is given to it as one."""
    colours = np.zeros((40, 56, 4), np.uint8)
    colours[..., 0], colours[8:30, 10:40, 3] = 200, 120
    picture = Image.fromarray(colours, "RGBA")
    try:
        expected = _processed(processor, [picture])[data["inputs"][0]]
    except Exception:  # it takes no such images; files lose their transparency before it sees them
        return "drop"
    for kind in ("drop", "white"):
        found = ImageProcessor({**data, "transparent": kind})([picture])[data["inputs"][0]]
        if found.shape == expected.shape and np.allclose(found, expected, atol=1e-5):
            return kind
    return "drop"


def _refused(processor: Any, name: str, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"The image processor of {name} ({type(processor).__name__}) cannot be carried to a phone: {why}.\n"
        "Remedy: change its settings in preprocessor_config.json to resizing, cropping, padding, rescaling and "
        "normalising; or leave that file out, and the bundle takes finished arrays."
    )
