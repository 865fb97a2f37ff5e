"""Matches detections with true boxes one to one, as COCO's evaluation does."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import box_area, box_iou

from vismoe.detection import Detections

from .truth import TrueBoxes

IOU = 0.5
"""The least IoU of a detection and the true box that it finds."""


@dataclass(frozen=True)
class Matching:
    """The M detections of an image matched with its N true boxes.

    - `true`: (M,), index of the true box that each detection finds; -1: none.
    - `ignored`: (M,), whether a detection finds nothing but lies on an ignored box of its class: no error.
    - `iou`: (M, N), overlap of each detection with each true box.
    """

    true: Int[Tensor, " M"]
    ignored: Bool[Tensor, " M"]
    iou: Float[Tensor, "M N"]


def match(detections: Detections, truth: TrueBoxes, iou: float = IOU) -> Matching:
    """Matches the detections of an image with its true boxes: by descending score, each finds the true box of its class
    with the largest overlap among those that are not found yet.

    A detection's match does not depend on detections with lower scores.

    **Arguments:**

    - `detections`: M detections, by descending score.
    - `truth`: N true boxes.
    - `iou`: least overlap of a match; default 0.5. With an ignored box, the part of the detection that lies on it.
    """
    boxes, true = detections.boxes.double(), truth.boxes.double()
    overlaps = box_iou(boxes, true)
    covered = _intersections(boxes, true) / box_area(boxes)[:, None]
    same = detections.labels[:, None] == truth.labels
    found = torch.full((len(detections),), -1)
    free = ~truth.ignored
    possible = torch.where(same & free & (overlaps >= iou), overlaps, -1)
    for row in possible.amax(1).ge(0).nonzero()[:, 0].tolist() if len(truth) else []:
        # The last among equals, as in COCO's evaluation.
        values = torch.where(free, possible[row], -1).flip(0)
        if values.max() >= 0:
            found[row] = len(values) - 1 - int(values.argmax())
            free[found[row]] = False
    on_ignored = (same & truth.ignored & (covered >= iou)).any(1)
    return Matching(found, on_ignored & (found < 0), overlaps)


def _intersections(first: Tensor, second: Tensor) -> Tensor:
    """(M, N), the common area of each box (M, 4) with each box (N, 4)."""
    low = torch.maximum(first[:, None, :2], second[:, :2])
    high = torch.minimum(first[:, None, 2:], second[:, 2:])
    return (high - low).clamp_min(0).prod(-1)
