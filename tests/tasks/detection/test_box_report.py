"""pytest tests/tasks/detection/test_box_report.py: a detector's tables have the evaluation's numbers, and its figures
are drawn for any set."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from vismoe.data import ImageSet
from vismoe.tasks.detection import true_boxes, write_report
from vismoe.tasks.detection.drawing import ERROR, class_colour
from vismoe.tasks.detection.mistakes import find_mistakes
from vismoe.tasks.detection.worst import image_with_mistakes

from .boxes import CLASSES, found, image_set, random_set, truth
from .test_box_evaluation import evaluated

FIGURES = {"precision_recall.png", "false_positives.png", "worst_images.png"}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables(tmp_path):
    """AP is the evaluation's; objects are those found, those missed, and those that an error explains."""
    images, detections = random_set(1, images=20, crowd=0.0)
    evaluation = evaluated(images, detections)
    write_report(evaluation, images, tmp_path)
    table, errors = rows(tmp_path / "classes.csv"), rows(tmp_path / "false_positives.csv")
    assert [row["class"] for row in table] == [row["class"] for row in errors] == CLASSES
    for row, other, each in zip(table, errors, evaluation.per_class, strict=True):
        assert int(row["objects"]) == each.objects
        assert (float(row["ap"]), float(row["ap50"])) == pytest.approx((each.ap, each.ap50), abs=1e-4)
        assert float(row["recall"]) == pytest.approx(int(other["found"]) / each.objects, abs=1e-4)
        shown = int(other["found"]) + sum(int(other[kind]) for kind in list(other)[3:-1])
        assert float(row["precision"]) == pytest.approx(int(other["found"]) / shown, abs=1e-4)
        assert int(other["missed"]) <= each.objects - int(other["found"])


@pytest.mark.figures
@pytest.mark.parametrize("size", [(24, 30), (400, 400), (3000, 2400)], ids=str)
def test_figures_are_drawn(size, tmp_path):
    """Of tiny and of huge images, without a warning."""
    scale = size[0] / 400
    images = image_set(
        [truth((20 * scale, 20 * scale, 120 * scale, 90 * scale, 0)), truth()], size, ["one $x$.png", "two.png"]
    )
    detections = [found((20 * scale, 20 * scale, 110 * scale, 90 * scale, 0, 0.9)), found((0, 0, 9, 9, 1, 0.9))]
    write_report(evaluated(images, detections), images, tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == FIGURES
    with Image.open(tmp_path / "worst_images.png") as image:
        assert max(image.size) < 1500


@pytest.mark.figures
def test_nothing_to_draw(tmp_path):
    """Without objects there is no curve, without errors there are no images of them; the tables are there."""
    images = image_set([truth()])
    write_report(evaluated(images, [found()]), images, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"classes.csv", "false_positives.csv"}
    for row in rows(tmp_path / "classes.csv"):
        assert (row["objects"], row["ap"], row["recall"]) == ("0", "", "")


def test_errors_are_red():
    """A wrong detection is red at its place in the shrunk image, a right one has the colour of its class."""
    images = image_set([truth((200, 200, 800, 800, 1))], (1280, 1280))
    detections = [found((200, 200, 800, 800, 1, 0.9), (1000, 1000, 1240, 1240, 1, 0.95))]
    evaluation = evaluated(images, detections)
    (mistakes,) = find_mistakes(evaluation).images
    image = image_with_mistakes(evaluation, mistakes, images, 0)
    assert image.size == (640, 640)
    red, blue = (
        tuple(int(colour[start : start + 2], 16) for start in (1, 3, 5)) for colour in (ERROR, class_colour(1))
    )
    assert image.getpixel((560, 619)) == red
    assert image.getpixel((200, 399)) == blue


def test_images_of_any_kind():
    """16-bit grey images and images with transparency are drawn as colour images."""
    deep = Image.fromarray(np.full((40, 50), 40_000, np.uint16))
    images = image_set([truth((5, 5, 30, 30, 0))] * 2, (40, 50))
    kinds = [deep, Image.new("RGBA", (50, 40), (10, 20, 30, 40))]
    mixed = ImageSet(images.labels, kinds.__getitem__, further=images.further)
    evaluation = evaluated(mixed, [found(), found()])
    assert len(true_boxes(mixed, 0)) == 1
    for number, mistakes in enumerate(find_mistakes(evaluation).images):
        assert image_with_mistakes(evaluation, mistakes, mixed, number).mode == "RGB"
        assert torch.equal(mistakes.missed, torch.tensor([True]))
