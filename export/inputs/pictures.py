"""Pictures to prove and verify on: painted here, so that nothing is downloaded, with what photographs have.

Slow gradients (sky), edges (buildings, horizon), discs (faces, wheels), fine texture (grass, hair), sensor noise and a
vignette; dark and bright, upright and lying. The same pictures on every machine.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

# Height and width: small and large, upright, lying, square, and of an odd number of pixels.
_PROBES = ((97, 131), (240, 180), (64, 64), (333, 500), (50, 203), (301, 77))
_PHOTOS = ((240, 320), (320, 240), (256, 256), (180, 300), (411, 277), (128, 96))


@functools.cache
def probes() -> tuple[Image.Image, ...]:
    """Small pictures of several shapes, in which every kind of resampling shows."""
    return tuple(photo(index, height, width) for index, (height, width) in enumerate(_PROBES))


@functools.cache
def photos() -> tuple[Image.Image, ...]:
    """Pictures of the size of small photographs."""
    return tuple(photo(100 + index, height, width) for index, (height, width) in enumerate(_PHOTOS))


def photo(seed: int, height: int, width: int) -> Image.Image:
    """One picture in RGB."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    sky, ground = random.uniform(60, 250, 3), random.uniform(10, 160, 3)
    horizon = random.uniform(0.3, 0.7) + 0.05 * np.sin(x * random.uniform(4, 12))
    colours = np.where((y < horizon)[..., None], sky * (1 - 0.5 * y[..., None]), ground * (0.6 + 0.6 * y[..., None]))
    texture = np.sin(x * random.uniform(80, 200)) * np.sin(y * random.uniform(80, 200) + 3 * x)
    colours += np.where((y > horizon)[..., None], 25 * texture[..., None], 0)
    for _ in range(int(random.integers(2, 5))):
        top, left = random.uniform(0, 0.7, 2)
        tall, wide = random.uniform(0.1, 0.3, 2)
        colour, kind = random.uniform(0, 255, 3), random.integers(3)
        if kind == 0:
            inside = (y > top) & (y < top + tall) & (x > left) & (x < left + wide)
            colours[inside] = colour
        elif kind == 1:
            distance = np.hypot((y - top - tall / 2) / tall, (x - left - wide / 2) / wide)
            inside = distance < 0.5
            colours[inside] = colour * (1.2 - distance[inside])[:, None]
        else:
            stripes = np.sin((x + 0.7 * y) * random.uniform(20, 60)) > 0
            inside = (y > top) & (y < top + tall) & (x > left) & (x < left + wide) & stripes
            colours[inside] = 0.3 * colours[inside] + 0.7 * colour
    colours *= (1.05 - 0.5 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))[..., None]
    colours += random.normal(0, random.uniform(2, 10), colours.shape)
    return Image.fromarray(np.clip(np.rint(colours), 0, 255).astype(np.uint8))


@functools.cache
def golden_photos() -> tuple[Image.Image, ...]:
    """Pictures small enough to lie in a bundle."""
    return photo(200, 96, 128), photo(201, 120, 80), photo(202, 64, 64)
