"""The boxes of a data set summarised: how many of each class, and how large."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vismoe.files import counted

from ..image_set import Data, ImageSet

AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
"""COCO's areas of small, medium and large boxes in pixels: from, and below."""


def summarise_boxes(data: Data) -> dict[str, Any]:
    """Summarises the boxes of a data set, without ignored ones.

    **Arguments:**

    - `data`: a data set with boxes (`Data.has_boxes`).

    **Returns:** a dictionary for JSON. "classes": for each class its number of boxes in `train` and in `val`
    ("test"), and the median width and height of its boxes in pixels of their images, None without boxes; "images
    without boxes" in `train` and `val`; "small", "medium", "large": number of boxes by COCO's areas; "ignored": number
    of boxes of crowds and difficult ones.
    """
    splits = {"train": data.train, "test": data.val}
    none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2), 0
    by_split = {name: none if split is None else _boxes_of(split) for name, split in splits.items()}
    classes = torch.cat([classes for classes, _, _ in by_split.values()])
    sizes = torch.cat([sizes for _, sizes, _ in by_split.values()])
    areas = sizes.prod(1)
    entries = []
    for number, name in enumerate(data.classes):
        of_class = sizes[classes == number]
        width, height = of_class.quantile(0.5, 0).tolist() if len(of_class) else (None, None)
        counts = {split: int((found == number).sum()) for split, (found, _, _) in by_split.items()}
        entries.append({"name": name, **counts, "width": width, "height": height})
    return {
        "classes": entries,
        "images_without": {name: 0 if split is None else _images_without(split) for name, split in splits.items()},
        **{name: int(((areas >= low) & (areas < high)).sum()) for name, (low, high) in AREAS.items()},
        "ignored": sum(ignored for _, _, ignored in by_split.values()),
    }


def count_boxes(data: Data, images: ImageSet) -> list[int]:
    """Number of boxes of each class in a split, without ignored ones."""
    return _boxes_of(images)[0].bincount(minlength=len(data.classes)).tolist()


def _boxes_of(images: ImageSet) -> tuple[Int[Tensor, " M"], Float[Tensor, "M 2"], int]:
    """The class, and the width and height, of all boxes that are not ignored, and the number of ignored ones."""
    classes, sizes, ignored = [], [], 0
    for index in range(len(images)):
        boxes, numbers, is_ignored = (images.further[name](index) for name in ("boxes", "classes", "ignored"))
        corners = boxes.as_subclass(Tensor)[~is_ignored]
        classes.append(numbers[~is_ignored])
        sizes.append(corners[:, 2:] - corners[:, :2])
        ignored += int(is_ignored.sum())
    return torch.cat(classes), torch.cat(sizes), ignored


def _images_without(images: ImageSet) -> int:
    return sum(not len(images.further["classes"](index)) for index in range(len(images)))


def format_boxes(summary: Mapping[str, Any], most: int) -> list[str]:
    """A summary of boxes as lines of text.

    **Arguments:**

    - `summary`: as `summarise_boxes` returns it.
    - `most`: number of classes that are printed.
    """
    classes = [
        f"{entry['name']} {entry['train']:,} + {entry['test']:,}"
        + ("" if entry["width"] is None else f" ({entry['width']:.0f} × {entry['height']:.0f})")
        for entry in summary["classes"]
    ]
    more = f" and {len(classes) - most} more" if len(classes) > most else ""
    without = sum(summary["images_without"].values())
    ignored = f", {summary['ignored']:,} ignored" if summary["ignored"] else ""
    large = counted(summary["large"], "large box", "large boxes")
    return [
        f"boxes (median width × height): {', '.join(classes[:most])}{more}",
        f"{summary['small']:,} small, {summary['medium']:,} medium, {large} (COCO's areas){ignored}; "
        f"{counted(without, 'image')} without boxes",
    ]
