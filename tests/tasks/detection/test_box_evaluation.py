"""pytest tests/tasks/detection/test_box_evaluation.py: the metrics are COCO's, on one process or several."""

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vismoe.tasks.detection import BoxScorer
from vismoe.tasks.detection import evaluation as evaluation_module
from vismoe.tasks.detection.evaluation import METRICS

from .boxes import CLASSES, found, image_set, random_set, truth, truths

STATS = dict(zip(METRICS, (0, 1, 2, 3, 4, 5, 8), strict=True))
"""The place of each metric in COCOeval.stats."""


def evaluated(images, detections, batch=5):
    scorer = BoxScorer(CLASSES, images)
    for places in torch.arange(len(images)).split(batch):
        scorer.update(places, [detections[place] for place in places.tolist()], {})
    return scorer.evaluation(lambda tensor: tensor, 10.0, {})


def cocoeval(images, detections, classes=None):
    """pycocotools' evaluation of the same boxes."""
    true, results = COCO(), []
    annotations = []
    for image, each in enumerate(truths(images)):
        for box, label, crowd in zip(each.boxes.tolist(), each.labels.tolist(), each.ignored.tolist(), strict=True):
            sides = [box[2] - box[0], box[3] - box[1]]
            area = sides[0] * sides[1]
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": label, "iscrowd": int(crowd)}
            annotations.append(row | {"bbox": [*box[:2], *sides], "area": area})
        boxes, scores, labels = detections[image].boxes, detections[image].scores, detections[image].labels
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            sides = [box[2] - box[0], box[3] - box[1]]
            results.append({"image_id": image, "category_id": label, "bbox": [*box[:2], *sides], "score": score})
    true.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(images))],
        "annotations": annotations,
        "categories": [{"id": number} for number in range(len(CLASSES))],
    }
    true.createIndex()
    evaluation = COCOeval(true, true.loadRes(results) if results else _nothing(true), "bbox")
    if classes is not None:
        evaluation.params.catIds = classes
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def _nothing(true):
    empty = COCO()
    empty.dataset = true.dataset | {"annotations": []}
    empty.createIndex()
    return empty


def as_nan(values):
    return np.where(np.asarray(values) < 0, math.nan, values)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"crowd": 0.5},
        {"crowd": 0.0, "levels": 4},
        {"images": 4, "most": 30, "extra": 400},
        {"images": 3, "most": 1, "extra": 0},
    ],
    ids=["mixed", "crowds", "ties", "more than 100 detections", "few"],
)
@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools(options, seed, capsys):
    """All metrics, and those of each class, are COCOeval's: with crowds, images without objects or detections, equal
    scores, and more than 100 detections of an image. Nothing is printed."""
    images, detections = random_set(seed, **options)
    capsys.readouterr()
    evaluation = evaluated(images, detections)
    assert capsys.readouterr() == ("", "")
    stats = as_nan(cocoeval(images, detections).stats)
    expected = {name: stats[place] for name, place in STATS.items()}
    assert list(evaluation.metrics) == list(expected)
    assert evaluation.metrics == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert math.isnan(evaluation.score) or 0 <= evaluation.score <= 1
    for number, each in enumerate(evaluation.per_class):
        own = as_nan(cocoeval(images, detections, [number]).stats)[:6]
        rates = [each.ap, each.ap50, each.ap75, each.ap_small, each.ap_medium, each.ap_large]
        assert rates == pytest.approx(own, abs=1e-6, nan_ok=True)
        assert float(each.curve.mean()) == pytest.approx(each.ap50, abs=1e-6, nan_ok=True)


def test_nothing_found_is_zero():
    """Without any detection the average precision is 0, not undefined."""
    images, detections = random_set(0, crowd=0.0)
    evaluation = evaluated(images, [each.above(2.0) for each in detections])
    assert evaluation.metrics["map"] == evaluation.metrics["mar100"] == 0
    assert "finds no object" in evaluation.weakness


def test_no_objects_is_undefined():
    """Images without objects, or with ignored ones only, have no average precision."""
    images = image_set([truth(), truth((10, 10, 50, 50, 0), ignored=[0])])
    evaluation = evaluated(images, [found((1, 1, 9, 9, 1, 0.5)), found()])
    assert all(map(math.isnan, evaluation.metrics.values()))
    assert all(math.isnan(each.ap) for each in evaluation.per_class)
    assert "the set of 2 images has no object" in evaluation.weakness


def test_processes_sum_up():
    """Detections that three processes found are those of one process, bit by bit, and so are the metrics."""
    images, detections = random_set(4)
    given, barrier = [torch.empty(0)] * 3, Barrier(3)

    def evaluated_by(rank):
        def total(tensor):
            given[rank] = tensor
            barrier.wait(60)
            summed = torch.stack(given).sum(0)
            barrier.wait(60)
            return summed

        scorer, places = BoxScorer(CLASSES, images), torch.arange(rank, len(images), 3)
        scorer.update(places, [detections[place] for place in places.tolist()], {})
        return scorer.evaluation(total, 10.0, {})

    evaluated(images, detections)  # imports what is imported only once, before there are threads
    with ThreadPoolExecutor(3) as pool:
        evaluations = list(pool.map(evaluated_by, range(3)))
    alone = evaluated(images, detections)
    for evaluation in evaluations:
        assert evaluation.metrics == alone.metrics
        for one, other in zip(evaluation.detections, detections, strict=True):
            assert torch.equal(one.boxes, other.boxes)
            assert torch.equal(one.scores, other.scores)
            assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("detections", "said"),
    [
        ([(0, 0, 9, 9, 0, 0.9), (20, 0, 29, 9, 1, 0.9)], None),
        ([(0, 0, 9, 9, 0, 0.9), (0, 20, 9, 29, 1, 0.9)], "the model finds only 'cat'"),
        ([(20, 0, 29, 9, 0, 0.9), (0, 0, 9, 9, 1, 0.9)], "the model finds no class"),
        ([], "the model finds no object in the set of 2 images"),
    ],
)
def test_a_useless_detector_is_told(detections, said):
    """A detector that finds nothing, nothing right, or one class of several; none of it of one that finds both."""
    images = image_set([truth((0, 0, 9, 9, 0), (20, 0, 29, 9, 1)), truth()])
    weakness = evaluated(images, [found(*detections), found()]).weakness
    assert weakness is None if said is None else said in weakness


def test_a_missing_package_is_named(monkeypatch):
    """Without the extra, the error comes before the first image, and says what to install."""
    monkeypatch.setattr(evaluation_module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'vismoe\[detect\]'"):
        BoxScorer(CLASSES, image_set([truth()]))


def test_crowded_images_are_told():
    """With more than 100 objects of a class in an image, the average precision cannot be 1, and a line says why."""
    corners = [(20 * (number % 15), 20 * (number // 15)) for number in range(120)]
    boxes = [(left, top, left + 9, top + 9, 0) for left, top in corners]
    evaluation = evaluated(image_set([truth(*boxes), truth()]), [found(*[(*box, 0.5) for box in boxes]), found()])
    assert evaluation.score == pytest.approx(84 / 101)  # of the recalls 0, 0.01, …, 83 hundredths are reached
    assert evaluation.lines()[1].startswith("more than 100 objects of one class are in 1 image: ")
    assert len(evaluated(image_set([truth(*boxes[:100])]), [found()]).lines()) == 1
