"""Where an image lies in the input of a network, and how the image and its boxes are moved there."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Placement:
    """The place of an image in the input of a network. Parts of the image may be outside the input.

    - `original`: height and width of the image in pixels.
    - `canvas`: height and width of the input in pixels.
    - `scaled`: height and width of the image in pixels of the input, after the rotation.
    - `top`, `left`: its first row and column in the input; they may be negative. Default 0.
    - `turned`: whether it is rotated by 90° counterclockwise; default False.
    - `mirrored`, `upside_down`: whether its visible part is flipped horizontally or vertically, after the rotation;
      default False.
    """

    original: tuple[int, int]
    canvas: tuple[int, int]
    scaled: tuple[int, int]
    top: int = 0
    left: int = 0
    turned: bool = False
    mirrored: bool = False
    upside_down: bool = False

    @property
    def visible(self) -> tuple[int, int, int, int]:
        """The part of the input that shows the image: left, top, right, bottom."""
        (height, width), (bottom, right) = self.scaled, self.canvas
        return (
            max(0, self.left),
            max(0, self.top),
            min(right, self.left + width),
            min(bottom, self.top + height),
        )

    @property
    def scale(self) -> Float[Tensor, "2"]:
        """Pixels of the input per pixel of the image, along the image's height and width."""
        along = self.scaled[::-1] if self.turned else self.scaled
        return torch.tensor([after / before for after, before in zip(along, self.original, strict=True)])

    def cut(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        """The visible part of the image, as it appears in the input.

        It is cropped and scaled in one call, so it is resampled once, with antialiasing. Flips and rotation by 90° do
        not resample.
        """
        left, top, right, bottom = self.visible
        size = (right - left, bottom - top)
        height, width = self.original[::-1] if self.turned else self.original
        per_row, per_column = height / self.scaled[0], width / self.scaled[1]
        box = (
            (left - self.left) * per_column,
            (top - self.top) * per_row,
            min(width, (right - self.left) * per_column),
            min(height, (bottom - self.top) * per_row),
        )
        if self.turned:
            size, box = size[::-1], (max(0.0, height - box[3]), box[0], height - box[1], box[2])
        patch = image if box == (0, 0, *image.size) and size == image.size else image.resize(size, resampling, box)
        for applies, operation in (
            (self.turned, Image.Transpose.ROTATE_90),
            (self.mirrored, Image.Transpose.FLIP_LEFT_RIGHT),
            (self.upside_down, Image.Transpose.FLIP_TOP_BOTTOM),
        ):
            patch = patch.transpose(operation) if applies else patch
        return patch

    def move(self, boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
        """Boxes of the image as boxes of the input, not clipped. Boxes are left, top, right, bottom in pixels."""
        vertical, horizontal = self.scale
        boxes = boxes * torch.stack([horizontal, vertical] * 2)
        if self.turned:
            lefts, tops, rights, bottoms = boxes.unbind(-1)
            boxes = torch.stack([tops, self.scaled[0] - rights, bottoms, self.scaled[0] - lefts], -1)
        boxes = boxes + torch.tensor([self.left, self.top] * 2)
        left, top, right, bottom = self.visible
        if self.mirrored:
            boxes[:, 0::2] = left + right - boxes[:, [2, 0]]
        if self.upside_down:
            boxes[:, 1::2] = top + bottom - boxes[:, [3, 1]]
        return boxes


def letterbox(original: tuple[int, int], canvas: tuple[int, int]) -> Placement:
    """The placement of an image that is scaled to fit inside the input, at its top left.

    **Arguments:**

    - `original`: height and width of the image in pixels.
    - `canvas`: height and width of the input in pixels.
    """
    return Placement(original, canvas, _scaled(original, _fit(original, canvas), 1.0))


@dataclass(frozen=True)
class PlacementRanges:
    """The ranges of random placements.

    - `factors`: smallest and largest scale, where 1 fits the image inside the input.
    - `aspect`: width ÷ height changes by a factor between 1 / (1 + `aspect`) and 1 + `aspect`.
    - `translate`: largest shift, as a fraction of the input's size.
    - `flip`, `vertical_flip`, `quarter_turn`: their probabilities.
    """

    factors: tuple[float, float]
    aspect: float
    translate: float
    flip: float
    vertical_flip: float
    quarter_turn: float

    def draw(self, original: tuple[int, int], canvas: tuple[int, int]) -> Placement:
        """Draws a placement with PyTorch's default generator; for the arguments, see `letterbox`."""
        size, aspect, *places, turn, mirror, invert = torch.rand(9).tolist()
        turned = turn < self.quarter_turn
        sides = original[::-1] if turned else original
        smallest, largest = self.factors
        factor = _fit(sides, canvas) * (smallest + (largest - smallest) * size)
        scaled = _scaled(sides, factor, (1 + self.aspect) ** (2 * aspect - 1))
        top, left = 0, 0
        if largest > smallest or self.aspect or self.translate:
            top, left = (
                self._start(length, limit, place, shift)
                for length, limit, place, shift in zip(scaled, canvas, places[:2], places[2:], strict=True)
            )
        return Placement(original, canvas, scaled, top, left, turned, mirror < self.flip, invert < self.vertical_flip)

    def _start(self, length: int, limit: int, place: float, shift: float) -> int:
        """The first row or column of an image of this length in an input of length `limit`: at a random place where it
        is inside the input, or covers it, and then shifted. At least half of what fits stays visible."""
        start = round((limit - length) * place + self.translate * limit * (2 * shift - 1))
        visible = math.ceil(min(length, limit) / 2)
        return min(max(start, visible - length), limit - visible)


def _fit(original: tuple[int, int], canvas: tuple[int, int]) -> float:
    """The scale at which an image just fits inside the input."""
    return min(after / before for after, before in zip(canvas, original, strict=True))


def _scaled(original: tuple[int, int], factor: float, aspect: float) -> tuple[int, int]:
    """Height and width after scaling, where width ÷ height changes by the factor `aspect` and the area does not."""
    height, width = original
    return max(1, round(height * factor / aspect**0.5)), max(1, round(width * factor * aspect**0.5))
