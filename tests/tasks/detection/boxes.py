"""Image sets with boxes, and detections of them, made at random or by hand."""

from collections.abc import Sequence
from functools import partial

import torch
from PIL import Image
from torchvision.tv_tensors import BoundingBoxes

from vismoe.data import ImageSet
from vismoe.detection import Detections
from vismoe.tasks.detection import TrueBoxes, true_boxes

CLASSES = ["cat", "dog", "owl"]


def truth(*rows: Sequence[float], ignored: Sequence[int] = ()) -> TrueBoxes:
    """True boxes from rows (left, top, right, bottom, class number); `ignored`: indices of ignored ones."""
    values = torch.tensor(rows).reshape(-1, 5)
    flags = torch.zeros(len(values), dtype=torch.bool)
    flags[list(ignored)] = True
    return TrueBoxes(values[:, :4].float(), values[:, 4].long(), flags)


def found(*rows: Sequence[float]) -> Detections:
    """Detections from rows (left, top, right, bottom, class number, score)."""
    values = torch.tensor(rows).reshape(-1, 6).float()
    values = values[values[:, 5].argsort(descending=True, stable=True)]
    return Detections(values[:, :4], values[:, 5], values[:, 4].long())


def image_set(boxes: Sequence[TrueBoxes], size: tuple[int, int] = (200, 240), files: Sequence[str] = ()) -> ImageSet:
    """Grey images with these true boxes. `size`: height and width."""
    labels = torch.zeros(len(boxes), len(CLASSES), dtype=torch.bool)
    for row, each in zip(labels, boxes, strict=True):
        row[each.labels[~each.ignored]] = True
    further = {
        "boxes": partial(_boxes, boxes, size),
        "classes": partial(_value, boxes, "labels"),
        "ignored": partial(_value, boxes, "ignored"),
    }
    return ImageSet(labels, partial(_grey, size), files, further=further)


def _boxes(boxes: Sequence[TrueBoxes], size: tuple[int, int], index: int) -> BoundingBoxes:
    return BoundingBoxes(boxes[index].boxes, format="XYXY", canvas_size=size)


def _value(boxes: Sequence[TrueBoxes], name: str, index: int) -> torch.Tensor:
    return getattr(boxes[index], name)


def _grey(size: tuple[int, int], index: int) -> Image.Image:
    return Image.new("RGB", (size[1], size[0]), (128, 128, 128))


def random_set(
    seed: int, images: int = 12, most: int = 8, extra: int = 10, crowd: float = 0.1, levels: int = 1000
) -> tuple[ImageSet, list[Detections]]:
    """An image set of three classes and of objects of all sizes, and detections: true boxes jittered, dropped,
    mislabelled or repeated, and boxes anywhere.

    **Arguments:**

    - `seed`: decides everything.
    - `images`: number of images; the first has no objects, the second no detections.
    - `most`: largest number of objects of an image.
    - `extra`: largest number of detections of an image that are made of nothing.
    - `crowd`: fraction of ignored objects.
    - `levels`: number of different scores; few levels have many ties.
    """
    generator = torch.Generator().manual_seed(seed)

    def boxes(count: int) -> torch.Tensor:
        sides = 200 * torch.rand(count, 2, generator=generator) ** 2 + 4
        corners = torch.rand(count, 2, generator=generator) * 200
        return torch.cat([corners, corners + sides], 1).round()

    def draw(below: int, count: int) -> torch.Tensor:
        return torch.randint(below, (count,), generator=generator)

    everything, detections = [], []
    for index in range(images):
        count = 0 if index == 0 else int(draw(most, 1)) + 1
        ignored = torch.rand(count, generator=generator) < crowd
        everything.append(TrueBoxes(boxes(count), draw(3, count), ignored))
        kept = draw(count, 2 * count) if count else torch.zeros(0, dtype=torch.long)
        jitter = (torch.randn(len(kept), 4, generator=generator) * 3).round()
        wrong = torch.rand(len(kept), generator=generator) < 0.2
        labels = torch.where(wrong, draw(3, len(kept)), everything[-1].labels[kept])
        made = int(draw(extra + 1, 1))
        rows = torch.cat([everything[-1].boxes[kept] + jitter, boxes(made)])
        rows[:, 2:] = torch.maximum(rows[:, 2:], rows[:, :2] + 1)
        scores = (draw(levels, len(rows)) + 1) / levels
        order = scores.argsort(descending=True, stable=True)[: 0 if index == 1 else len(rows)]
        detections.append(Detections(rows[order], scores[order], torch.cat([labels, draw(3, made)])[order]))
    return image_set(everything, (400, 400)), detections


def truths(images: ImageSet) -> list[TrueBoxes]:
    return [true_boxes(images, index) for index in range(len(images))]
