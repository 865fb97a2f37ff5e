"""Decoded images cached in memory, at reduced size. Decoding a photo can take longer than training on it."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from .image_set import ImageSet
from .images import MAX_LEVEL, eight_bits, flatten_alpha
from .transforms import evaluation_scale


def cached_images(images: ImageSet, side: int, max_level: int = MAX_LEVEL) -> ImageSet:
    """The same images, decoded once, on first use, and cached at reduced size. Transparent images get a white
    background.

    **Arguments:**

    - `images`: the images.
    - `side`: the short side of a cached image is at most this many pixels; larger images are scaled by a box filter.
    - `max_level`: the level of 16-bit images that is white; default 65,535.

    **Raises:** ValueError if the set has further values: boxes and masks would not be scaled with the image.
    """
    return _cached(images, partial(_boxed, side, max_level))


def cached_at_scale(images: ImageSet, config: dict[str, Any]) -> ImageSet:
    """The same images, decoded once, on first use, and cached at the scale that a network's evaluation needs. The
    results of the network are bit-identical.

    **Arguments:**

    - `images`: the images.
    - `config`: timm's data configuration of the network.

    **Raises:** ValueError as `cached_images`.
    """
    return _cached(images, evaluation_scale(config))


def _cached(images: ImageSet, change: Callable[[Image.Image], Image.Image]) -> ImageSet:
    if images.further:
        raise ValueError(
            f"images with {', '.join(images.further)} cannot be cached at another size: use them without a cache"
        )
    return replace(images, image=_Cache(images, change))


def cache_bytes(images: ImageSet, side: int) -> int:
    """Estimated memory of cached images, for colour images with an aspect ratio of 4:3.

    **Arguments:**

    - `images`: the images.
    - `side`: short side of the cached images in pixels.

    **Returns:** number of bytes.
    """
    return len(images) * side * side * 4


class _Cache:
    def __init__(self, images: ImageSet, change: Callable[[Image.Image], Image.Image]):
        self.images, self.change = images, change
        self.decoded: dict[int, Image.Image] = {}

    def __call__(self, index: int) -> Image.Image:
        if index not in self.decoded:
            self.decoded[index] = self.change(self.images.image(index))
        return self.decoded[index]


def _boxed(side: int, max_level: int, image: Image.Image) -> Image.Image:
    image = flatten_alpha(eight_bits(image, max_level))
    image = image if image.mode == "L" else image.convert("RGB")
    factor = side / min(image.size)
    if factor >= 1:
        return image
    width, height = (math.ceil(length * factor) for length in image.size)
    return image.resize((width, height), Image.Resampling.BOX)
