"""COCO's metrics of detections: average precision (AP) and average recall by class and size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vismoe.data import Batch, ImageSet
from vismoe.detection import Detections
from vismoe.files import counted

from ..base import Evaluation, Scorer, Sum
from .truth import TrueBoxes, true_boxes

METRICS = {
    "map": "map",
    "map50": "map_50",
    "map75": "map_75",
    "map_small": "map_small",
    "map_medium": "map_medium",
    "map_large": "map_large",
    "mar100": "mar_100",
}
"""torchmetrics' name of each metric."""
RECALLS = 101
"""Number of recalls at which COCO takes the precision."""
MOST = 100
"""Largest number of detections of a class in an image that COCO's metrics count."""
USELESS = 0.01
"""A class with an AP50 below this is not found."""


@dataclass(frozen=True)
class ClassPrecision:
    """The rates of one class, 0 to 1; NaN without such objects.

    - `name`: name of the class.
    - `objects`: number of true boxes, without ignored ones.
    - `ap`, `ap50`, `ap75`: average precision over the IoU thresholds 0.5, 0.55, …, 0.95, and at 0.5 and 0.75.
    - `ap_small`, `ap_medium`, `ap_large`: `ap` of objects below 32² pixels, between, and above 96² pixels.
    - `curve`: (101,), interpolated precision at IoU 0.5 at the recalls 0, 0.01, …, 1. Its mean is `ap50`.
    """

    name: str
    objects: int
    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    curve: Tensor


@dataclass(frozen=True)
class BoxEvaluation(Evaluation):
    """The evaluation of a detector on N images.

    - `classes`: names of the K classes.
    - `per_class`: (K,), the rates of each class.
    - `detections`: (N,), the objects found in each image, in pixels of the image.
    - `truth`: (N,), the true boxes of each image.
    """

    classes: Sequence[str]
    per_class: Sequence[ClassPrecision]
    detections: Sequence[Detections]
    truth: Sequence[TrueBoxes]

    @property
    def weakness(self) -> str | None:
        present = [each for each in self.per_class if each.objects]
        if not present:
            return f"the set of {counted(len(self.truth), 'image')} has no object: the metrics are not defined"
        if not any(map(len, self.detections)):
            return f"the model finds no object in the set of {counted(len(self.truth), 'image')}"
        found = [each.name for each in present if each.ap50 >= USELESS]
        if not found:
            return f"the model finds no class: the AP50 of each is below {USELESS}"
        if len(found) == 1 and len(present) > 1:
            return f"the model finds only {found[0]!r}: the AP50 of every other class is below {USELESS}"
        return None

    def details(self) -> dict[str, Any]:
        return {
            "per_class": {
                each.name: {"objects": each.objects, "ap": each.ap, "ap50": each.ap50} for each in self.per_class
            }
        }

    def lines(self) -> list[str]:
        present = sorted((each.ap, each.name, each.ap50) for each in self.per_class if each.objects)
        shown = ", ".join(f"{name} {ap:.4f} ({ap50:.4f})" for ap, name, ap50 in present)
        lines = [f"AP (AP50) by class, worst first: {shown}"] if present else []
        crowded = sum(bool((each.labels[~each.ignored].bincount() > MOST).any()) for each in self.truth)
        if crowded:
            lines.append(
                f"more than {MOST} objects of one class are in {counted(crowded, 'image')}: COCO's metrics "
                f"count only the {MOST} best detections of a class in an image"
            )
        return lines


class BoxScorer(Scorer):
    """Collects the detections of all images.

    **Arguments:**

    - `classes`: names of the K classes, in the order of the network's outputs.
    - `images`: the images, with their true boxes in `further`.

    **Raises:** ValueError if the extra `detect` is not installed.
    """

    def __init__(self, classes: Sequence[str], images: ImageSet):
        check_coco_eval()
        self.classes, self.images = classes, images
        self.found: dict[int, Detections] = {}

    def update(self, places: Tensor, outputs: Sequence[Detections], batch: Batch) -> None:
        for place, detections in zip(places.tolist(), outputs, strict=True):
            self.found[place] = detections.on(Tensor.cpu)

    def evaluation(self, total: Sum, images_per_second: float, load: dict[str, list[int]]) -> BoxEvaluation:
        detections = gathered(self.found, len(self.images), total)
        truth = [true_boxes(self.images, index) for index in range(len(self.images))]
        metrics, per_class = coco_metrics(detections, truth, self.classes)
        return BoxEvaluation(metrics, images_per_second, load, self.classes, per_class, detections, truth)


def check_coco_eval() -> None:
    """Raises ValueError if the package that computes COCO's metrics is not installed."""
    if find_spec("faster_coco_eval") is None:
        raise ValueError("the metrics of detection need faster-coco-eval: pip install 'vismoe[detect]'")


def gathered(found: dict[int, Detections], images: int, total: Sum) -> list[Detections]:
    """The detections of all images, of which each process has some.

    **Arguments:**

    - `found`: this process's detections by image number.
    - `images`: number of images of all processes.
    - `total`: sums a tensor over all processes. All other terms of a sum are 0, so that sums are exact.
    """
    counts = torch.zeros(images, dtype=torch.long)
    for place, detections in found.items():
        counts[place] = len(detections)
    counts = total(counts)
    rows = torch.zeros(int(counts.sum()), 5)
    labels = torch.zeros(len(rows), dtype=torch.long)
    ends = counts.cumsum(0).tolist()
    for place, detections in found.items():
        own = slice(ends[place] - len(detections), ends[place])
        rows[own] = torch.cat([detections.boxes, detections.scores[:, None]], 1)
        labels[own] = detections.labels
    pieces = zip(total(rows).split(counts.tolist()), total(labels).split(counts.tolist()), strict=True)
    return [Detections(values[:, :4], values[:, 4], numbers) for values, numbers in pieces]


def coco_metrics(
    detections: Sequence[Detections], truth: Sequence[TrueBoxes], classes: Sequence[str]
) -> tuple[dict[str, float], list[ClassPrecision]]:
    """COCO's metrics (https://cocodataset.org/#detection-eval). The area of an object is that of its box.

    **Arguments:**

    - `detections`: (N,), the objects found in each image. The 100 best of each class count.
    - `truth`: (N,), the true boxes of each image.
    - `classes`: names of the K classes.

    **Returns:** the metrics by name, NaN where no object has the size; and (K,) the rates of each class.
    """
    labels = torch.cat([each.labels[~each.ignored] for each in truth])
    objects = labels.bincount(minlength=len(classes)).tolist()
    if not len(labels):
        precision, rows = torch.full((10, RECALLS, len(classes), 4), -1.0), list(range(len(classes)))
        metrics = dict.fromkeys(METRICS, math.nan)
    else:
        summary = _summary(detections, truth)
        metrics = {name: _rate(summary[given]) for name, given in METRICS.items()}
        precision, rows = summary["precision"][..., -1], summary["classes"].flatten().tolist()
    per_class = []
    for number, name in enumerate(classes):
        # Dimensions: IoU threshold, recall, range of areas. -1: no objects.
        own = precision[:, :, rows.index(number)] if number in rows else precision.new_full((10, RECALLS, 4), -1)
        rates = {
            "ap": _rate(own[..., 0]),
            "ap50": _rate(own[0, :, 0]),
            "ap75": _rate(own[5, :, 0]),
            "ap_small": _rate(own[..., 1]),
            "ap_medium": _rate(own[..., 2]),
            "ap_large": _rate(own[..., 3]),
        }
        curve = own[0, :, 0].float()
        per_class.append(ClassPrecision(name, objects[number], curve=curve.where(curve >= 0, math.nan), **rates))
    return metrics, per_class


def _summary(detections: Sequence[Detections], truth: Sequence[TrueBoxes]) -> dict[str, Tensor]:
    """torchmetrics' values by name."""
    from torchmetrics.detection import MeanAveragePrecision  # its import takes a second

    # torchmetrics' own thresholds are rounded to float32. In double precision, as in pycocotools, an IoU or recall of
    # 0.6 is not below the threshold 0.6.
    metric = MeanAveragePrecision(
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, RECALLS).tolist(),
        backend="faster_coco_eval",
        extended_summary=True,
    )
    metric.warn_on_many_detections = False
    metric.update(
        [{"boxes": each.boxes.double(), "scores": each.scores, "labels": each.labels} for each in detections],
        [{"boxes": each.boxes.double(), "labels": each.labels, "iscrowd": each.ignored.long()} for each in truth],
    )
    summary: dict[str, Tensor] = metric.compute()
    return summary


def _rate(values: Tensor) -> float:
    """The mean of values; NaN for COCO's -1: no objects."""
    return float(values.double().mean()) if bool((values > -1).all()) else math.nan
