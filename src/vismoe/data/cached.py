"""Images kept in memory, no larger than they are needed: decoding a photograph can cost more than training on it."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from .image_set import ImageSet
from .images import eight_bits, flatten_alpha
from .transforms import evaluation_scale


def cached_images(images: ImageSet, side: int) -> ImageSet:
    """The same set, each image decoded once, when it is first asked for, and kept: on white ground, with a short side
    of at most `side` pixels, by a box filter.

    **Raises:** ValueError for a set with further values, whose places in an image would not be scaled with it.
    """
    return _cached(images, partial(_boxed, side))


def cached_at_scale(images: ImageSet, config: dict[str, Any]) -> ImageSet:
    """The same set, each image decoded once and kept in the scale in which a network with this data configuration is
    evaluated: the results are the same, bit for bit.

    **Raises:** as `cached_images`.
    """
    return _cached(images, evaluation_scale(config))


def _cached(images: ImageSet, change: Callable[[Image.Image], Image.Image]) -> ImageSet:
    if images.further:
        raise ValueError(
            f"images with {', '.join(images.further)} cannot be kept in another size: use the set as it is"
        )
    return replace(images, image=_Kept(images, change))


def memory_of(images: ImageSet, side: int) -> int:
    """The bytes that images in the shape 4:3 and in colour take, kept so."""
    return len(images) * side * side * 4


class _Kept:
    def __init__(self, images: ImageSet, change: Callable[[Image.Image], Image.Image]):
        self.images, self.change = images, change
        self.known: dict[int, Image.Image] = {}

    def __call__(self, index: int) -> Image.Image:
        if index not in self.known:
            self.known[index] = self.change(self.images.image(index))
        return self.known[index]


def _boxed(side: int, image: Image.Image) -> Image.Image:
    image = flatten_alpha(eight_bits(image))
    image = image if image.mode == "L" else image.convert("RGB")
    factor = side / min(image.size)
    if factor >= 1:
        return image
    width, height = (math.ceil(length * factor) for length in image.size)
    return image.resize((width, height), Image.Resampling.BOX)
