"""Draws boxes with labels on images."""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#2f7ef7", "#ff8c1a", "#22b14c", "#b04ae6", "#00bcd4", "#f050a8", "#a0761e", "#7f9f00", "#5a55d0", "#009688")
"""The first classes' colours. Red is for errors."""
GOLDEN = 0.618034
ERROR = "#e8112d"
LONGEST = 24
"""Largest number of characters of a class name in a label."""

Rectangle = tuple[int, int, int, int]
"""Left, top, right, bottom in whole pixels."""


@dataclass(frozen=True)
class Mark:
    """A box to draw.

    - `box`: left, top, right, bottom in pixels.
    - `colour`: as "#rrggbb".
    - `label`: text beside the box; default "": none.
    - `dashed`: whether the line is dashed; default False.
    - `width`: width of the line, relative to the usual one; default 1.
    """

    box: Sequence[float | int]
    colour: str
    label: str = ""
    dashed: bool = False
    width: float | int = 1


def class_colour(number: int) -> str:
    """The colour of a class in all figures, as "#rrggbb"."""
    if number < len(COLOURS):
        return COLOURS[number]
    rgb = colorsys.hsv_to_rgb(number * GOLDEN % 1, 0.75, 0.95 if number % 2 else 0.7)
    return "#" + "".join(f"{round(255 * value):02x}" for value in rgb)


def short_name(name: str) -> str:
    """A class name as one line of a label."""
    line = " ".join(name.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def draw_boxes(image: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """Draws boxes on a copy of an image. Lines lie inside the boxes; labels lie above them, or below or inside where
    there is no room. Lines and letters grow with the image; letters are smaller where most boxes are small.

    **Arguments:**

    - `image`: the image.
    - `marks`: the boxes; later ones are drawn over earlier ones.

    **Returns:** an RGB image of the same size.
    """
    drawn = image.convert("RGB") if image.mode != "RGB" else image.copy()
    scale = math.sqrt(drawn.width * drawn.height)
    draw = ImageDraw.Draw(drawn)
    for mark in marks:
        _draw_rectangle(draw, mark, max(1, round(mark.width * scale / 270)))
    labelled = [mark.box for mark in marks if mark.label]
    side = median(min(box[2] - box[0], box[3] - box[1]) for box in labelled) if labelled else scale
    font = _font(round(max(10, min(scale / 42, max(scale / 90, side / 3)))))
    taken: list[Rectangle] = []
    for mark in reversed(marks):
        if mark.label:
            taken.append(_draw_label(draw, mark, font, drawn.size, taken))
    return drawn


def _draw_rectangle(draw: ImageDraw.ImageDraw, mark: Mark, width: int) -> None:
    """Draws the outline of a box on the pixels that the box covers by at least a half."""
    left, top, right, bottom = (round(value) for value in mark.box)
    right, bottom = max(left, right - 1), max(top, bottom - 1)
    width = min(width, max(1, min(right - left, bottom - top) // 3))
    if not mark.dashed:
        draw.rectangle((left, top, right, bottom), outline=mark.colour, width=width)
        return
    step = max(3, 3 * width)
    for start in range(left, right + 1, 2 * step):
        end = min(start + step - 1, right)
        draw.rectangle((start, top, end, top + width - 1), fill=mark.colour)
        draw.rectangle((start, bottom - width + 1, end, bottom), fill=mark.colour)
    for start in range(top, bottom + 1, 2 * step):
        end = min(start + step - 1, bottom)
        draw.rectangle((left, start, left + width - 1, end), fill=mark.colour)
        draw.rectangle((right - width + 1, start, right, end), fill=mark.colour)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    mark: Mark,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
    taken: Sequence[Rectangle],
) -> Rectangle:
    """Draws the label of a box where it covers the least of other labels. Returns the place."""
    margin = max(1, round(font.size / 6))
    width = math.ceil(draw.textlength(mark.label, font)) + 2 * margin
    ascent, descent = font.getmetrics()
    height = ascent + descent
    left, top, right, bottom = (round(value) for value in mark.box)
    places = [(left, top - height), (left, bottom), (right - width, top - height), (right - width, bottom), (left, top)]
    inside = [(min(max(0, x), max(0, size[0] - width)), y) for x, y in places if y >= 0 and y + height <= size[1]] or [
        (min(max(0, left), max(0, size[0] - width)), min(max(0, top), max(0, size[1] - height)))
    ]
    rectangles = [(x, y, x + width, y + height) for x, y in inside]
    place = min(rectangles, key=lambda each: sum(_overlap(each, other) for other in taken))
    draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=mark.colour)
    draw.text((place[0] + margin, place[1]), mark.label, fill=_readable_on(mark.colour), font=font)
    return place


def _overlap(first: Rectangle, second: Rectangle) -> int:
    """The number of pixels that two rectangles share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0, width) * max(0, height)


def _readable_on(colour: str) -> str:
    """Black or white, whichever has more contrast with a colour (relative luminance as in WCAG 2)."""
    values = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's font, which has the letters of more languages than Pillow's."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
