"""pytest tests/tasks/detection/test_mistakes.py: detections are matched as COCO does, and each error has its kind."""

import math

import numpy as np
import pytest
import torch

from vismoe.tasks.detection.matching import match
from vismoe.tasks.detection.mistakes import KINDS, NO_BEST, find_mistakes, image_mistakes

from .boxes import found, image_set, random_set, truth, truths
from .test_box_evaluation import cocoeval, evaluated


@pytest.mark.parametrize("options", [{"crowd": 0.4}, {"crowd": 0.0, "levels": 3}], ids=["crowds", "ties"])
def test_matches_are_cocos(options, capsys):
    """pycocotools finds the same true boxes and ignores the same detections at IoU 0.5, image by image."""
    images, detections = random_set(5, **options)
    evaluation = cocoeval(images, detections)
    identities = [row["id"] for row in sorted(evaluation.cocoGt.anns.values(), key=lambda row: row["id"])]
    first = np.cumsum([0, *map(len, truths(images))])
    seen = 0
    for entry in evaluation.evalImgs:
        if entry is None or entry["aRng"] != evaluation.params.areaRng[0]:
            continue
        image, number = entry["image_id"], entry["category_id"]
        matching = match(detections[image], truths(images)[image])
        own = detections[image].labels == number
        ignored = entry["dtIgnore"][0].astype(bool)
        expected = [
            identities.index(int(identity)) - first[image] if identity and not skipped else -1
            for identity, skipped in zip(entry["dtMatches"][0], ignored, strict=True)
        ]
        assert matching.true[own].tolist() == expected
        assert matching.ignored[own].tolist() == ignored.tolist()
        seen += len(expected)
    assert seen > 50


SQUARE = (0, 0, 100, 100, 0)
CASES = {
    "right": ([SQUARE], (10, 0, 100, 100, 0, 0.9), None, 0),
    "classification": ([SQUARE], (10, 0, 100, 100, 1, 0.9), "classification", 0),
    "localisation": ([SQUARE], (60, 0, 160, 100, 0, 0.9), "localisation", 0),
    "both": ([SQUARE], (60, 0, 160, 100, 1, 0.9), "both", 1),
    "background": ([SQUARE], (90, 90, 160, 160, 0, 0.9), "background", 1),
    "no object": ([], (90, 90, 160, 160, 0, 0.9), "background", 0),
    "the first of two kinds": ([SQUARE, (60, 0, 160, 100, 1)], (60, 0, 160, 100, 0, 0.9), "localisation", 1),
}
"""True boxes, one detection, its error, and the number of missed objects."""


@pytest.mark.parametrize("case", CASES)
def test_each_error_has_its_kind(case):
    """One detection against the definitions of TIDE. An object with a classification or localisation error is not
    missed as well."""
    rows, detection, kind, missed = CASES[case]
    detections, true = found(detection), truth(*rows)
    each = image_mistakes(detections, true, match(detections, true), torch.tensor([True]))
    assert [KINDS[number] if number >= 0 else None for number in each.kinds.tolist()] == [kind]
    assert each.right.tolist() == [kind is None]
    assert int(each.missed.sum()) == missed
    assert each.errors == (kind is not None) + missed


def test_a_second_detection_is_a_duplicate():
    """The detection with the lower score is the duplicate, even if it fits better; it is none if the first is not
    shown. An ignored object is neither missed, nor are detections of it errors."""
    detections = found((10, 0, 100, 100, 0, 0.9), (0, 0, 100, 100, 0, 0.8), (210, 0, 240, 30, 0, 0.7))
    true = truth(SQUARE, (200, 0, 300, 100, 0), (400, 0, 500, 100, 0), ignored=[1, 2])
    matching = match(detections, true)
    each = image_mistakes(detections, true, matching, torch.tensor([True, True, True]))
    assert each.kinds.tolist() == [-1, KINDS.index("duplicate"), -1]
    assert not each.missed.any()
    hidden = image_mistakes(detections, true, matching, torch.tensor([False, False, True]))
    assert hidden.kinds.tolist() == [-1, -1, -1]
    assert hidden.missed.tolist() == [True, False, False]


def test_thresholds_are_the_best():
    """The threshold of each class has the largest F1 of all scores, by trying each; counts are those at this
    threshold, and right and missed objects and those with another error add up."""
    images, detections = random_set(6, images=30, levels=40)
    evaluation = evaluated(images, detections)
    mistakes = find_mistakes(evaluation)
    matchings = [match(each, true) for each, true in zip(detections, truths(images), strict=True)]
    for number, (point, rates) in enumerate(zip(mistakes.points, evaluation.per_class, strict=True)):
        tried = {}
        for level in range(1, 41):
            shown = hits = 0
            for each, matching in zip(detections, matchings, strict=True):
                kept = (each.labels == number) & (each.scores >= np.float32(level / 40)) & ~matching.ignored
                shown, hits = shown + int(kept.sum()), hits + int((matching.true[kept] >= 0).sum())
            tried[level / 40] = (2 * hits / (shown + rates.objects), hits, shown)
        f1, hits, shown = max(tried.values())
        assert point.f1 == pytest.approx(f1)
        assert tried[round(point.threshold, 6)][0] == pytest.approx(f1)
        assert (point.precision, point.recall) == pytest.approx((hits / shown, hits / rates.objects))
        assert int(mistakes.right[number]) == hits
        assert int(mistakes.counts[number, :-1].sum()) == shown - hits
    assert int(mistakes.counts.sum()) == sum(each.errors for each in mistakes.images)
    assert (mistakes.counts.sum(0) > 0).all(), "the set has errors of each kind"


def test_without_right_detections():
    """A class without objects has the threshold of all classes together, and without any right detection 0.5."""
    images = image_set([truth(SQUARE)])
    one = find_mistakes(evaluated(images, [found((0, 0, 100, 100, 0, 0.25), (0, 0, 50, 50, 1, 0.4))]))
    assert [point.threshold for point in one.points] == [0.25] * 3
    assert math.isnan(one.points[1].recall)
    assert one.points[1].precision == 0
    none = find_mistakes(evaluated(images, [found()]))
    assert [point.threshold for point in none.points] == [NO_BEST] * 3
    assert none.counts.sum() == none.counts[0, -1] == 1
    assert none.points[0].recall == 0
