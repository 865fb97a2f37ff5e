"""The objects found in an image as JSON, as rows of a table, as COCO's JSON, and drawn on the image."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from vismoe.data import MAX_LEVEL, eight_bits, flatten_alpha, read_image
from vismoe.detection import Detections
from vismoe.files import readable

from ..base import Prediction
from .drawing import Mark, class_colour, draw_boxes, short_name

SMALLEST = 320
"""Drawn images whose longer side has fewer pixels are enlarged by a whole factor, so that labels are readable."""


@dataclass(frozen=True)
class FoundBox:
    """An object found in an image.

    - `name`: name of its class.
    - `number`: number of its class, from 0.
    - `score`: confidence, 0 to 1.
    - `box`: left, top, right, bottom in pixels of the image, turned upright by its EXIF orientation.
    """

    name: str
    number: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxPrediction(Prediction):
    """The objects found in one image, by descending score.

    - `image`: path or title of the image.
    - `size`: height and width of the image in pixels.
    - `boxes`: the objects.
    """

    image: str
    size: tuple[int, int]
    boxes: list[FoundBox]

    def above(self, score: float | int) -> "BoxPrediction":
        """The prediction with only the objects that have at least this score."""
        return replace(self, boxes=[each for each in self.boxes if each.score >= score])

    def to_json(self) -> dict[str, Any]:
        boxes = [{"name": each.name, "score": each.score, "box": list(each.box)} for each in self.boxes]
        return {"image": self.image, "width": self.size[1], "height": self.size[0], "boxes": boxes}

    def columns(self) -> dict[str, Any]:
        """The image as one row: its size and its number of objects. `rows` has the objects."""
        return {"image": self.image, "width": self.size[1], "height": self.size[0], "objects": len(self.boxes)}

    def rows(self) -> list[dict[str, Any]]:
        """One row per object; an image without objects has one row with empty cells, so that every image is there."""
        image = {"image": self.image, "width": self.size[1], "height": self.size[0]}
        sides = ("left", "top", "right", "bottom")
        found = [
            {"name": each.name, "score": each.score, **dict(zip(sides, each.box, strict=True))} for each in self.boxes
        ]
        return [image | row for row in found or [dict.fromkeys(("name", "score", *sides), "")]]

    def table_rows(self) -> list[dict[str, str]]:
        """The same for a printed table, without the size, with rounded numbers."""
        found = [
            {"object": each.name, "score": f"{each.score:.3f}"}
            | {side: f"{value:.1f}" for side, value in zip(("left", "top", "right", "bottom"), each.box, strict=True)}
            for each in self.boxes
        ]
        nothing = {"object": "none", "score": "", "left": "", "top": "", "right": "", "bottom": ""}
        return [{"image": self.image} | row for row in found or [nothing]]


def box_predictions(outputs: Sequence[Detections], titles: Sequence[str], classes: Sequence[str]) -> list[Prediction]:
    """Predictions from the detections of a batch.

    **Arguments:**

    - `outputs`: (B,), the objects found in each image, in pixels of the image, with its size.
    - `titles`: (B,), path or title of each image.
    - `classes`: names of the K classes.

    **Raises:** ValueError for detections without the size of their image.
    """
    predictions: list[Prediction] = []
    for detections, title in zip(outputs, titles, strict=True):
        if detections.size is None:
            raise ValueError(f"{title}: the detections have no size: give Detections the height and width of its image")
        rows = zip(detections.labels.tolist(), detections.scores.tolist(), detections.boxes.tolist(), strict=True)
        boxes = [
            FoundBox(classes[number], number, score, (left, top, right, bottom))
            for number, score, (left, top, right, bottom) in rows
        ]
        predictions.append(BoxPrediction(title, detections.size, boxes))
    return predictions


def coco_json(predictions: Sequence[BoxPrediction], classes: Sequence[str]) -> dict[str, Any]:
    """Predictions as one COCO data set (https://cocodataset.org/#format-data), which tools for labelling can open.
    Annotations have a "score" too, so that the list of them is in COCO's format of results.

    **Arguments:**

    - `predictions`: the predictions. The ids of their images are 1, 2, …; "file_name" is their path or title.
    - `classes`: names of the K classes, with the ids 1 to K.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, each in enumerate(predictions, start=1):
        images.append({"id": image, "file_name": each.image, "width": each.size[1], "height": each.size[0]})
        for found in each.boxes:
            left, top, right, bottom = found.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": found.number + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                    "score": found.score,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    info = {"description": "objects found by vismoe predict"}
    return {"info": info, "images": images, "categories": categories, "annotations": annotations}


def draw_predictions(
    predictions: Sequence[BoxPrediction], files: Sequence[Path], folder: Path, max_level: int = MAX_LEVEL
) -> None:
    """Draws the objects on their images, and writes these into a folder by the names of the files. A JPEG stays one,
    images of other formats become PNG files. Files with the same name get a number.

    **Arguments:**

    - `predictions`: the predictions.
    - `files`: image files; each prediction's `image` is one of them.
    - `folder`: the folder, which exists and is empty.
    - `max_level`: the level of 16-bit images that is white, as for the network; default 65,535.
    """
    paths: Mapping[str, Path] = {readable(str(path)): path for path in files}
    written: set[str] = set()
    for each in predictions:
        drawn = draw_prediction(read_image(paths[each.image]), each, max_level)
        path = paths[each.image]
        is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
        suffix = path.suffix if is_jpeg or path.suffix.lower() == ".png" else ".png"
        name, number = path.stem + suffix, 2
        while name.lower() in written:  # some systems do not distinguish upper and lower case
            name, number = f"{path.stem}-{number}{suffix}", number + 1
        written.add(name.lower())
        drawn.save(folder / name, quality=95)  # PNG has no quality


def draw_prediction(image: Image.Image, prediction: BoxPrediction, max_level: int = MAX_LEVEL) -> Image.Image:
    """An image with the objects found in it, as an RGB image. An image of less than 320 pixels is enlarged by a whole
    factor.

    **Arguments:**

    - `image`: the image, upright.
    - `prediction`: its prediction.
    - `max_level`: the level of a 16-bit image that is white; default 65,535.
    """
    pixels = flatten_alpha(eight_bits(image, max_level)).convert("RGB")
    factor = math.ceil(SMALLEST / max(pixels.size))
    if factor > 1:
        pixels = pixels.resize((pixels.width * factor, pixels.height * factor), Image.Resampling.NEAREST)
    marks = [
        Mark(
            [factor * value for value in each.box],
            class_colour(each.number),
            f"{short_name(each.name)} {each.score:.2f}",
        )
        for each in prediction.boxes
    ]
    return draw_boxes(pixels, marks[::-1])  # the highest score on top
