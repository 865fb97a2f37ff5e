"""Decoded images cached in memory, at reduced size. Decoding a photo can take longer than training on it."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

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

    **Raises:** ValueError if the set has further values: boxes and masks would not be scaled with the image (see
    `cached_with_boxes`).
    """
    return _cached(images, partial(_boxed, side, max_level))


def cached_with_boxes(images: ImageSet, side: int, max_level: int = MAX_LEVEL) -> ImageSet:
    """The same images, decoded once, on first use, and cached at reduced size, with boxes and masks scaled with them.
    For training only: detections are evaluated in pixels of the original image.

    **Arguments:**

    - `images`: the images. Of `further`, `tv_tensors.BoundingBoxes` and `Mask`s of the size of their image are scaled;
      other values stay as they are.
    - `side`: the long side of a cached image is at most this many pixels; larger images are scaled by a box filter.
    - `max_level`: the level of 16-bit images that is white; default 65,535.

    **Raises:** ValueError if a further value replaces the image.
    """
    if "image" in images.further:
        raise ValueError("a set whose further values have the image cannot be cached: use it without a cache")
    further = {name: partial(_scaled_value, value, side) for name, value in images.further.items()}
    return replace(images, image=_Cache(images, partial(_fitted, side, max_level)), further=further)


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


def _plain(image: Image.Image, max_level: int) -> Image.Image:
    """An image in grey or colour, without transparency."""
    image = flatten_alpha(eight_bits(image, max_level))
    return image if image.mode == "L" else image.convert("RGB")


def _fitted(side: int, max_level: int, image: Image.Image) -> Image.Image:
    image, size = _plain(image, max_level), _fitted_size(image.size, side)
    return image if size == image.size else image.resize(size, Image.Resampling.BOX)


def _fitted_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size of an image scaled so that its long side is at most `side`."""
    factor = min(1.0, side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _scaled_value(value: Callable[[int], Any], side: int, index: int) -> Any:
    """A further value of an image, scaled with the image."""
    entry = value(index)
    if isinstance(entry, tv_tensors.BoundingBoxes | tv_tensors.Mask):
        size = entry.canvas_size if isinstance(entry, tv_tensors.BoundingBoxes) else tuple(entry.shape[-2:])
        return functional.resize(entry, list(_fitted_size(size, side)))
    return entry


def _boxed(side: int, max_level: int, image: Image.Image) -> Image.Image:
    image = _plain(image, max_level)
    factor = side / min(image.size)
    if factor >= 1:
        return image
    width, height = (math.ceil(length * factor) for length in image.size)
    return image.resize((width, height), Image.Resampling.BOX)
