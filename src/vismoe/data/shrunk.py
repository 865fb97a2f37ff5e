"""Pictures kept in memory, no larger than training needs: decoding a photograph can cost more than training on it."""

import math
from dataclasses import replace

from PIL import Image

from .image_set import ImageSet
from .images import eight_bits, flatten_alpha


def shrunk(images: ImageSet, side: int) -> ImageSet:
    """The same set, each picture decoded once, when it is first asked for, and kept: on white ground, with a short side
    of at most `side` pixels, by a box filter."""
    return replace(images, picture=_Kept(images, side))


def memory_of(images: ImageSet, side: int) -> int:
    """The bytes that pictures in the shape 4:3 and in colour take, kept so."""
    return len(images) * side * side * 4


class _Kept:
    def __init__(self, images: ImageSet, side: int):
        self.images, self.side = images, side
        self.known: dict[int, Image.Image] = {}

    def __call__(self, index: int) -> Image.Image:
        if index not in self.known:
            self.known[index] = self._small(flatten_alpha(eight_bits(self.images.picture(index))))
        return self.known[index]

    def _small(self, picture: Image.Image) -> Image.Image:
        picture = picture if picture.mode == "L" else picture.convert("RGB")
        factor = self.side / min(picture.size)
        if factor >= 1:
            return picture
        width, height = (math.ceil(length * factor) for length in picture.size)
        return picture.resize((width, height), Image.Resampling.BOX)
