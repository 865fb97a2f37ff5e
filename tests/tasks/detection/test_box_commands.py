"""pytest tests/tasks/detection/test_box_commands.py: predict and eval of a detector, as they are typed."""

import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from vismoe.cli import main
from vismoe.cli.inference import eval as eval_command
from vismoe.cli.inference import predict as predict_command
from vismoe.data import Data, ImageSet
from vismoe.detection import Detections

from .boxes import CLASSES, image_set, truth


class FindsColours(nn.Module):
    """A detector whose answers are known: a red rectangle is a cat with score 0.9, a green one a dog with 0.2."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        size = {"input_size": (3, 64, 64), "mean": (0.0,) * 3, "std": (1.0,) * 3}
        self.pretrained_cfg = size | {
            "interpolation": "nearest",
            "crop_pct": 1.0,
            "problem_type": "object-detection",
            "label_names": CLASSES,
        }
        self.num_classes = 3

    def forward(self, images, *rest):
        return [self.found(image) for image in images]

    def found(self, image):
        rows = []
        for label, score in ((0, 0.9), (1, 0.2)):
            ys, xs = (image[label] - image.sum(0) / 2 > 0.25).nonzero(as_tuple=True)
            if len(ys):
                rows.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, label, score])
        values = torch.tensor(rows).reshape(-1, 6)
        return Detections(values[:, :4], values[:, 5], values[:, 4].long())


RED, GREEN = (20, 30, 60, 70), (80, 10, 120, 50)


def drawn(*rectangles):
    image = Image.new("RGB", (128, 96), "black")
    for box, colour in rectangles:
        ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=colour)
    return image


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    drawn((RED, "red"), (GREEN, "lime")).save(folder / "both.png")
    drawn().save(folder / "nothing.png")
    return folder


@pytest.fixture(autouse=True)
def _stub(monkeypatch):
    for command in (predict_command, eval_command):
        monkeypatch.setattr(command, "open_model", lambda *arguments, **options: FindsColours())


def test_predict_formats(images, capsys):
    """Boxes are in pixels of the original image; objects below the least score, 0.3 if it is not given, are left out;
    an image without objects is there in every format."""
    assert main(["predict", "stub", str(images), "--format", "json"]) == 0
    both, nothing = json.loads(capsys.readouterr().out)
    assert both["boxes"] == [{"name": "cat", "score": pytest.approx(0.9), "box": list(RED)}]
    assert (both["width"], both["height"], nothing["boxes"]) == (128, 96, [])
    assert main(["predict", "stub", str(images), "--format", "csv", "--min-score", "0.1"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["name"], row["left"], row["bottom"]) for row in rows] == [
        ("cat", "20.0", "70.0"),
        ("dog", "80.0", "50.0"),
        ("", "", ""),
    ]
    assert main(["predict", "stub", str(images), "--format", "coco", "--min-score", "0"]) == 0
    coco = json.loads(capsys.readouterr().out)
    assert [row["bbox"] for row in coco["annotations"]] == [[20, 30, 40, 40], [80, 10, 40, 40]]
    assert [row["name"] for row in coco["categories"]] == CLASSES
    assert main(["predict", "stub", str(images)]) == 0
    table = capsys.readouterr().out
    assert "0.900" in table
    assert "none" in table


def test_predict_draws(images, tmp_path, capsys):
    """Each image is written once, with its boxes, into a new folder; a folder that exists is an error."""
    out = tmp_path / "drawn"
    before = (images / "both.png").read_bytes()
    assert main(["predict", "stub", str(images), str(images / "both.png"), "--draw", str(out)]) == 0
    assert f"the images with boxes are in {out}" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["both-2.png", "both.png", "nothing.png"]
    assert (images / "both.png").read_bytes() == before
    assert main(["predict", "stub", str(images), "--draw", str(images)]) == 2
    assert "exists" in capsys.readouterr().err


def test_predict_says_that_nothing_is_found(images, capsys):
    """Where no score is large enough, a note names the largest."""
    (images / "both.png").unlink()
    drawn((GREEN, "lime")).save(images / "green.png")
    assert main(["predict", "stub", str(images)]) == 0
    assert "no object has a score of at least 0.3 (--min-score); the largest score is 0.200" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topk", "3"], "topk=3 is for classifiers, and this model finds objects: use --min-score"),
        (["--min-score", "30"], "min_score=30.0: accepted are 0 to 1"),
    ],
)
def test_predict_refuses(options, message, images, capsys):
    """An option that a detector does not have, or a percentage."""
    assert main(["predict", "stub", str(images), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--min-score", "0.5"], ["--format", "coco"], ["--draw", "out"]], ids=" ".join)
def test_a_classifier_refuses(option, images, capsys, monkeypatch):
    """Options of a detector given to a classifier are an error, before any image is read."""
    import vismoe

    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=3)
    monkeypatch.setattr(predict_command, "open_model", lambda *arguments, **options: model)
    assert main(["predict", "classifier", str(images), *option]) == 2
    assert "is for models that find objects" in capsys.readouterr().err


def test_formulas(images, capsys, monkeypatch):
    """In CSV a class whose name a spreadsheet would run as a formula has an apostrophe; numbers are as they are."""
    model = FindsColours()
    model.pretrained_cfg |= {"label_names": ["=1+1", "-2", "owl"]}
    monkeypatch.setattr(predict_command, "open_model", lambda *arguments, **options: model)
    assert main(["predict", "stub", str(images / "both.png"), "--format", "csv", "--min-score", "0.1"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["name"], row["left"]) for row in rows] == [("'=1+1", "20.0"), ("-2", "80.0")]


def test_drawn_as_the_network_sees_it(tmp_path, capsys, monkeypatch):
    """An image of 12 bits in a file of 16 is drawn with the white level of the network."""
    model = FindsColours()
    model.pretrained_cfg |= {"max_level": 4095}
    monkeypatch.setattr(predict_command, "open_model", lambda *arguments, **options: model)
    Image.fromarray(np.full((320, 320), 2048, np.uint16)).save(tmp_path / "grey.png")
    assert main(["predict", "stub", str(tmp_path / "grey.png"), "--draw", str(tmp_path / "drawn")]) == 0
    with Image.open(tmp_path / "drawn" / "grey.png") as drawn:
        assert drawn.getpixel((160, 160)) == (128, 128, 128)  # 2048 ÷ 4095 of 255


def evaluated(monkeypatch, capsys, *options):
    boxes = [truth((*RED, 0)), truth((*GREEN, 1), (0, 0, 10, 10, 0))]
    made = image_set(boxes, (96, 128))
    images = [drawn((RED, "red")), drawn((GREEN, "lime"))]
    data = Data("stub", CLASSES, None, ImageSet(made.labels, images.__getitem__, further=made.further))
    monkeypatch.setattr(eval_command, "open_set", lambda *arguments, **options: data)
    code = main(["eval", "stub", "--data", "stub", *options])
    return code, *capsys.readouterr()


def test_eval(monkeypatch, capsys):
    """One of two cats and the only dog are found exactly. What is undefined is null in JSON."""
    code, out, _ = evaluated(monkeypatch, capsys, "--json")
    assert code == 0
    figures = json.loads(out)
    # Interpolated at 101 recalls, of which 51 are at most a half.
    assert figures["map"] == pytest.approx((51 / 101 + 1) / 2)
    assert figures["map50"] == pytest.approx((51 / 101 + 1) / 2)
    assert figures["map_large"] is None
    assert figures["per_class"]["dog"] == {"objects": 1, "ap": 1, "ap50": 1}
    assert figures["per_class"]["owl"] == {"objects": 0, "ap": None, "ap50": None}
    assert figures["images_per_second"] > 0
    code, out, err = evaluated(monkeypatch, capsys)
    assert code == 0
    assert re.match(r"mAP 0\.7525, mAP50 0\.7525, mAP75 .*, mAP large undefined, mAR100 .* on 2 images, ", out)
    assert "AP (AP50) by class, worst first: cat 0.5050 (0.5050), dog 1.0000 (1.0000)" in out
    assert "no images of owl" in err


def test_eval_by_group_is_for_classifiers(monkeypatch, capsys):
    """--group of a detector is refused with the reason."""
    code, _, err = evaluated(monkeypatch, capsys, "--group", "site")
    assert code == 2
    assert "expected a classifier, got the task object-detection" in err
