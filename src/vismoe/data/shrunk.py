"""Pictures kept in memory, no larger than they are needed: decoding a photograph can cost more than training on it."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from .image_set import ImageSet
from .images import eight_bits, flatten_alpha
from .pipeline import evaluation_scale


def shrunk(images: ImageSet, side: int) -> ImageSet:
    """The same set, each picture decoded once, when it is first asked for, and kept: on white ground, with a short side
    of at most `side` pixels, by a box filter."""
    return replace(images, picture=_Kept(images, partial(_boxed, side)))


def scaled(images: ImageSet, config: dict[str, Any]) -> ImageSet:
    """The same set, each picture decoded once and kept in the scale in which a network with this data configuration is
    evaluated: the results are the same, bit for bit."""
    return replace(images, picture=_Kept(images, evaluation_scale(config)))


def memory_of(images: ImageSet, side: int) -> int:
    """The bytes that pictures in the shape 4:3 and in colour take, kept so."""
    return len(images) * side * side * 4


class _Kept:
    def __init__(self, images: ImageSet, change: Callable[[Image.Image], Image.Image]):
        self.images, self.change = images, change
        self.known: dict[int, Image.Image] = {}

    def __call__(self, index: int) -> Image.Image:
        if index not in self.known:
            self.known[index] = self.change(self.images.picture(index))
        return self.known[index]


def _boxed(side: int, picture: Image.Image) -> Image.Image:
    picture = flatten_alpha(eight_bits(picture))
    picture = picture if picture.mode == "L" else picture.convert("RGB")
    factor = side / min(picture.size)
    if factor >= 1:
        return picture
    width, height = (math.ceil(length * factor) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)
