"""Images cached in memory, no larger than needed: decoding a photograph can cost more than training on it."""

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
    """The same set with images that are decoded once, on first use, and cached: on white ground, with a short side of
    at most `side` pixels, scaled by a box filter. `max_level`: white in images of 16 bits, default 65,535.

    **Raises:** ValueError for a set with further values: boxes and masks would not be scaled with the image.
    """
    return _cached(images, partial(_boxed, side, max_level))


def cached_at_scale(images: ImageSet, config: dict[str, Any]) -> ImageSet:
    """The same set with images that are decoded once and cached, at the scale at which a network with this data
    configuration is evaluated: the results are the same, bit for bit.

    **Raises:** as `cached_images`.
    """
    return _cached(images, evaluation_scale(config))


def _cached(images: ImageSet, change: Callable[[Image.Image], Image.Image]) -> ImageSet:
    if images.further:
        raise ValueError(
            f"images with {', '.join(images.further)} cannot be kept in another size: use the set as it is"
        )
    return replace(images, image=_Cache(images, change))


def cache_bytes(images: ImageSet, side: int) -> int:
    """Bytes that the images take when cached with a short side of `side` pixels, if they are 4:3 and in colour."""
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
