"""Places the boxes of annotations in the images that are there: in pixels of the upright image, inside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from vismoe.files import counted

from ..images import FAILED, SWAPS_SIDES, Header, Unreadable, read_header, read_image
from .annotations import AnnotatedImage, Object

TOLERANCE = 0.01
"""Pixels that a box may reach outside its image without being counted: fractions are written with six decimals."""
TURNED: Mapping[Image.Transpose, Callable[[float, float, float, float], tuple[float, float]]] = {
    Image.Transpose.TRANSPOSE: lambda x, y, width, height: (y, x),
    Image.Transpose.ROTATE_270: lambda x, y, width, height: (height - y, x),
    Image.Transpose.TRANSVERSE: lambda x, y, width, height: (height - y, width - x),
    Image.Transpose.ROTATE_90: lambda x, y, width, height: (y, width - x),
}
"""Where a point (x, y) of an image of a width and height is after the image was turned."""


@dataclass
class Report:
    """What was changed in boxes. Each list names the image of each changed box."""

    clipped: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    other_size: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Notes to the user."""
        changes = (
            (self.clipped, "reach outside their images and are clipped", "reaches outside its image and is clipped"),
            (self.empty, "have no area and are left out", "has no area and is left out"),
        )
        notes = [
            f"1 box {one}: in {files[0]}"
            if len(files) == 1
            else f"{len(files):,} boxes {several}, such as in {files[0]}"
            for files, several, one in changes
            if files
        ]
        if self.turned:
            notes.append(
                f"the annotations of {counted(len(self.turned), 'image')} such as {self.turned[0]} are of the image "
                "before its EXIF orientation: their boxes are turned with it"
            )
        return notes


@dataclass(frozen=True)
class PlacedImage:
    """An image with its objects in pixels of the upright image.

    - `image`: the annotated image.
    - `size`: width and height of the upright image.
    - `objects`: its objects, inside the image and with an area.
    """

    image: AnnotatedImage
    size: tuple[int, int]
    objects: Sequence[Object]


def place(
    images: Sequence[AnnotatedImage], paths: Mapping[str, Path], fractions: bool, report: Report
) -> list[PlacedImage]:
    """Places the boxes of annotated images, by the headers of their files.

    **Arguments:**

    - `images`: the images.
    - `paths`: the path of each image by its `file`.
    - `fractions`: whether boxes are in fractions of the image's size.
    - `report`: what is changed is added to it.

    **Returns:** the images whose header can be read.
    """
    placed = []
    for image in images:
        try:
            header = read_header(paths[image.file])
        except ValueError as error:
            report.unreadable.append(Unreadable.of(image.file, error))
            continue
        objects = list(image.objects)
        stored, upright = (header.width, header.height), header.upright_size
        if image.size is not None and image.size != upright:
            if image.size != stored:
                given, actual = (f"{width} × {height}" for width, height in (image.size, upright))
                report.other_size.append(f"{image.file}: {given} pixels in the annotation, {actual} in the image")
                continue
            report.turned.append(image.file)
            objects = [_turned(each, header) for each in objects]
        if fractions:
            objects = [_scaled(each, upright) for each in objects]
        placed.append(PlacedImage(image, upright, _inside(image.file, objects, upright, report)))
    return placed


def _turned(item: Object, header: Header) -> Object:
    """An object of a stored image, in the upright image."""
    assert header.turn in SWAPS_SIDES
    turn = TURNED[header.turn]
    x0, y0 = turn(item.left, item.top, header.width, header.height)
    x1, y1 = turn(item.right, item.bottom, header.width, header.height)
    return Object(item.name, min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1), item.ignored)


def _scaled(item: Object, size: tuple[int, int]) -> Object:
    width, height = size
    return Object(
        item.name, item.left * width, item.top * height, item.right * width, item.bottom * height, item.ignored
    )


def _inside(file: str, objects: Sequence[Object], size: tuple[int, int], report: Report) -> list[Object]:
    """The objects clipped to their image, without those that have no area."""
    width, height = size
    inside = []
    for each in objects:
        left, right = (min(max(x, 0.0), float(width)) for x in (each.left, each.right))
        top, bottom = (min(max(y, 0.0), float(height)) for y in (each.top, each.bottom))
        if right <= left or bottom <= top:
            report.empty.append(file)
            continue
        moved = zip((left, top, right, bottom), each[1:5], strict=True)
        if max(abs(new - old) for new, old in moved) > TOLERANCE:
            report.clipped.append(file)
        inside.append(Object(each.name, left, top, right, bottom, each.ignored))
    return inside


def read_sized(paths: Sequence[Path], sizes: Sequence[tuple[int, int]], index: int) -> Image.Image:
    """Decodes the i-th image, which must have the size that its boxes were placed in.

    **Raises:** ValueError if it cannot be decoded, or has another size.
    """
    image = read_image(paths[index])
    if image.size != sizes[index]:
        width, height = sizes[index]
        raise ValueError(
            f"{paths[index]}{FAILED}it has {image.width} × {image.height} pixels, but {width} × {height} when its "
            "boxes were read: the file has changed, or its orientation is written after its pixels"
        )
    return image
