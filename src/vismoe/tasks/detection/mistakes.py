"""Counts the errors of a detector by kind, at each class's best threshold of the score."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vismoe.detection import Detections

from .evaluation import BoxEvaluation
from .matching import IOU, Matching, match
from .truth import TrueBoxes

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
"""Kinds of errors (TIDE, Bolya et al. 2020). All but the last are false positives; IoU is the overlap with a true box.

- `classification`: another class's object, with IoU at least 0.5.
- `localisation`: an object of this class, with IoU between 0.1 and 0.5.
- `both`: another class's object, with IoU between 0.1 and 0.5.
- `duplicate`: an object that a detection with a higher score has found.
- `background`: IoU below 0.1 with every object.
- `missed`: an object without a detection, not even one with a classification or localisation error.
"""
BACKGROUND = 0.1
"""Below this IoU with all objects, a detection is on the background."""
NO_BEST = 0.5
"""The threshold of the score if no detection of any class is right."""


@dataclass(frozen=True)
class OperatingPoint:
    """The threshold of the score with the largest F1 of a class, on the evaluated images.

    - `threshold`: least score; that of all classes together if the class has no object or none is found.
    - `precision`, `recall`, `f1`: at this threshold; NaN without detections or objects.
    """

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ImageMistakes:
    """The errors on one image with M detections and N true boxes.

    - `shown`: (M,), whether the score reaches the threshold of the class.
    - `right`: (M,), whether a shown detection finds a true box.
    - `kinds`: (M,), for each detection the place of its error in `KINDS`; -1: not shown, right, or on an ignored box.
    - `missed`: (N,), whether a true box is missed, as in `KINDS`.
    """

    shown: Bool[Tensor, " M"]
    right: Bool[Tensor, " M"]
    kinds: Int[Tensor, " M"]
    missed: Bool[Tensor, " N"]

    @property
    def errors(self) -> int:
        """Number of errors."""
        return int((self.kinds >= 0).sum()) + int(self.missed.sum())


@dataclass(frozen=True)
class Mistakes:
    """The errors of a detector on N images, with K classes.

    - `points`: (K,), threshold of each class.
    - `images`: (N,), the errors on each image.
    - `counts`: (K, 6), number of errors of each kind in the order of `KINDS`, by the class of the detection, missed
      objects by their own.
    - `right`: (K,), number of objects found.
    """

    points: Sequence[OperatingPoint]
    images: Sequence[ImageMistakes]
    counts: Tensor
    right: Tensor


def find_mistakes(evaluation: BoxEvaluation) -> Mistakes:
    """The errors of an evaluation. Each class has the threshold with the largest F1 on these same images, so the counts
    are slightly better than those on new images."""
    matchings = [match(*pair) for pair in zip(evaluation.detections, evaluation.truth, strict=True)]
    points = operating_points(evaluation, matchings)
    thresholds = torch.tensor([point.threshold for point in points], dtype=torch.float32)
    counts = torch.zeros(len(points), len(KINDS), dtype=torch.long)
    right = torch.zeros(len(points), dtype=torch.long)
    images = []
    for detections, truth, matching in zip(evaluation.detections, evaluation.truth, matchings, strict=True):
        shown = detections.scores >= thresholds[detections.labels]
        each = image_mistakes(detections, truth, matching, shown)
        images.append(each)
        wrong = each.kinds >= 0
        counts.index_put_((detections.labels[wrong], each.kinds[wrong]), torch.tensor(1), accumulate=True)
        counts[:, -1] += truth.labels[each.missed].bincount(minlength=len(points))
        right += detections.labels[each.right].bincount(minlength=len(points))
    return Mistakes(points, images, counts, right)


def operating_points(evaluation: BoxEvaluation, matchings: Sequence[Matching]) -> list[OperatingPoint]:
    """The threshold of each class with the largest F1."""
    objects = [each.objects for each in evaluation.per_class]
    counted = [~each.ignored for each in matchings]
    pairs = list(zip(evaluation.detections, counted, strict=True))
    scores = torch.cat([each.scores[kept] for each, kept in pairs])
    labels = torch.cat([each.labels[kept] for each, kept in pairs])
    right = torch.cat([each.true[kept] >= 0 for each, kept in zip(matchings, counted, strict=True)])
    together = _best(scores, right, sum(objects))
    default = NO_BEST if together is None else together.threshold
    points = []
    for number, count in enumerate(objects):
        own = labels == number
        point = _best(scores[own], right[own], count)
        if point is None:
            shown = int((scores[own] >= default).sum())
            point = OperatingPoint(default, 0.0 if shown else math.nan, 0.0 if count else math.nan, math.nan)
        points.append(point)
    return points


def _best(scores: Tensor, right: Tensor, objects: int) -> OperatingPoint | None:
    """The threshold with the largest F1 of detections with these scores; None if none is right."""
    if not bool(right.any()):
        return None
    order = scores.argsort(descending=True, stable=True)
    scores, hits = scores[order], right[order].cumsum(0)
    shown = torch.arange(1, len(scores) + 1)
    f1 = 2 * hits / (shown + objects)
    # A threshold shows all detections with its score or none.
    last = torch.cat([scores[:-1] > scores[1:], torch.tensor([True])])
    best = int(torch.where(last, f1, -1).argmax())
    precision, recall = float(hits[best] / shown[best]), float(hits[best] / objects)
    return OperatingPoint(float(scores[best]), precision, recall, float(f1[best]))


def image_mistakes(detections: Detections, truth: TrueBoxes, matching: Matching, shown: Tensor) -> ImageMistakes:
    """The errors on one image. The order of the checks is that of TIDE's implementation: an error that could be of two
    kinds is of the first in localisation, classification, duplicate, background, both.

    **Arguments:**

    - `detections`, `truth`: M detections, N true boxes.
    - `matching`: their matching.
    - `shown`: (M,), which detections count.
    """
    right = shown & (matching.true >= 0)
    kinds = torch.full((len(detections),), -1)
    explained = torch.zeros(len(truth), dtype=torch.bool)
    explained[matching.true[right]] = True
    objects = ~truth.ignored
    for row in (shown & (matching.true < 0) & ~matching.ignored).nonzero()[:, 0].tolist():
        same = truth.labels == detections.labels[row]
        own, own_place = _largest(matching.iou[row], same & objects)
        other, other_place = _largest(matching.iou[row], ~same & objects)
        if BACKGROUND <= own < IOU:
            kind = "localisation"
            explained[own_place] = True
        elif other >= IOU:
            kind = "classification"
            explained[other_place] = True
        elif own >= IOU:
            kind = "duplicate"
        else:
            kind = "background" if max(own, other) < BACKGROUND else "both"
        kinds[row] = KINDS.index(kind)
    return ImageMistakes(shown, right, kinds, objects & ~explained)


def _largest(overlaps: Tensor, among: Tensor) -> tuple[float, int]:
    """The largest overlap among some true boxes, and its place; -1 if there are none."""
    if not bool(among.any()):
        return -1.0, -1
    values = torch.where(among, overlaps, -1)
    return float(values.max()), int(values.argmax())
