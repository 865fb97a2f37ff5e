"""pytest tests/tasks/detection/test_box_predictions.py: found objects as text and as drawings."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from vismoe.data import read_image
from vismoe.tasks.detection import BoxPrediction, box_predictions, coco_json, draw_predictions
from vismoe.tasks.detection.drawing import Mark, class_colour, draw_boxes
from vismoe.tasks.detection.predictions import draw_prediction

from .boxes import CLASSES, found

FOUND = found((10, 20, 110.5, 70, 1, 0.75), (0, 0, 30, 30, 0, 0.25))
NOTHING = found()


def predicted(outputs=(FOUND, NOTHING), titles=("a.png", "b.png"), sizes=((200, 240), (100, 50))):
    sized = [replace(each, size=size) for each, size in zip(outputs, sizes, strict=True)]
    predictions = box_predictions(sized, titles, CLASSES)
    assert all(isinstance(each, BoxPrediction) for each in predictions)
    return predictions


def test_json_and_rows():
    """Boxes are left, top, right, bottom; a row is an object, and an image without objects has a row without one."""
    first, second = predicted()
    assert first.to_json() == {
        "image": "a.png",
        "width": 240,
        "height": 200,
        "boxes": [
            {"name": "dog", "score": 0.75, "box": [10, 20, 110.5, 70]},
            {"name": "cat", "score": 0.25, "box": [0, 0, 30, 30]},
        ],
    }
    assert second.to_json()["boxes"] == []
    rows = [*first.rows(), *second.rows()]
    assert [(row["image"], row["name"], row["right"]) for row in rows] == [
        ("a.png", "dog", 110.5),
        ("a.png", "cat", 30),
        ("b.png", "", ""),
    ]
    printed = [*first.table_rows(), *second.table_rows()]
    assert [(row["object"], row["score"]) for row in printed] == [("dog", "0.750"), ("cat", "0.250"), ("none", "")]
    for table in (rows, printed):
        assert len({tuple(row) for row in table}) == 1
    assert [each.name for each in first.above(0.5).boxes] == ["dog"]
    assert first.columns()["objects"] == 2


def test_unknown_size():
    """Detections without the size of their image make no prediction."""
    with pytest.raises(ValueError, match=r"a\.png: the detections have no size"):
        box_predictions([FOUND], ["a.png"], CLASSES)


def test_coco_loads_in_pycocotools(tmp_path):
    """As a data set and as results, the boxes come back with their images, classes and scores."""
    path = tmp_path / "found.json"
    path.write_text(json.dumps(coco_json(predicted(), CLASSES)))
    loaded = COCO(path)
    assert [each["file_name"] for each in loaded.loadImgs(loaded.getImgIds())] == ["a.png", "b.png"]
    assert [each["name"] for each in loaded.loadCats(loaded.getCatIds())] == CLASSES
    results = loaded.loadRes(loaded.dataset["annotations"])
    for annotations in (loaded.anns, results.anns):
        back = []
        for row in annotations.values():
            left, top, width, height = row["bbox"]
            name = loaded.cats[row["category_id"]]["name"]
            back.append((row["image_id"], name, row["score"], (left, top, left + width, top + height)))
        assert back == [(1, each.name, each.score, each.box) for each in predicted()[0].boxes]


@pytest.mark.parametrize("size", [(640, 480), (3000, 2000), (320, 320)], ids=str)
@pytest.mark.parametrize("dashed", [False, True])
def test_only_the_outline_changes(size, dashed):
    """Without a label, pixels outside the box and well inside it keep their values, and the image its size; the
    outline has the colour."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (size[1], size[0], 3), np.uint8)
    left, top, right, bottom = size[0] // 8, size[1] // 8, size[0] // 2, size[1] - 20
    drawn = np.asarray(
        draw_boxes(Image.fromarray(pixels), [Mark((left, top, right, bottom), "#ff0000", dashed=dashed)])
    )
    changed = (drawn != pixels).any(-1)
    outside = np.ones_like(changed)
    outside[top:bottom, left:right] = False
    assert not changed[outside].any()
    middle = (slice(top + 20, bottom - 20), slice(left + 20, right - 20))
    assert not changed[middle].any()
    for edge in (drawn[top, left:right], drawn[bottom - 1, left:right], drawn[top:bottom, left]):
        assert 0.4 < (edge == (255, 0, 0)).all(-1).mean() < (0.7 if dashed else 1.01)


@pytest.mark.parametrize(
    "box", [(300, 0, 320, 10), (0, 200, 5, 240), (-50, -50, 400, 400), (100, 100, 100, 100)], ids=str
)
def test_labels_stay_in_the_image(box):
    """A label lies within the image wherever its box is: all of its background is there."""
    image = Image.new("RGB", (320, 240), "white")
    plain = np.asarray(draw_boxes(image, [Mark(box, "#ff0000")]))
    drawn = np.asarray(draw_boxes(image, [Mark(box, "#ff0000", "a cat 0.50")]))
    changed = (drawn != plain).any(-1)
    assert changed.sum() > 300


def test_labels_do_not_cover_each_other():
    """Two boxes at the same place have two labels that can be read: as much colour of each."""
    image = Image.new("RGB", (320, 240), "white")
    marks = [Mark((50, 50, 150, 150), colour, "dog 0.50") for colour in ("#00ff00", "#0000ff")]
    drawn = np.asarray(draw_boxes(image, marks))
    alone = np.asarray(draw_boxes(image, marks[:1]))
    green = (drawn == (0, 255, 0)).all(-1).sum()
    outline = (np.asarray(draw_boxes(image, [Mark((50, 50, 150, 150), "#00ff00")])) == (0, 255, 0)).all(-1).sum()
    assert green >= (alone == (0, 255, 0)).all(-1).sum() - outline


def test_drawn_files(tmp_path):
    """Names are kept, those that occur twice get a number; a JPEG stays one, others become PNG files; an image is
    drawn upright as it was predicted; small images are enlarged; the originals are unchanged."""
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    (tmp_path / "in").mkdir()
    (tmp_path / "other").mkdir()
    files = [tmp_path / name for name in ("in/a.JPG", "other/a.JPG", "in/a.png", "in/a.bmp", "in/grey.tif")]
    for path in files[:4]:
        Image.new("RGB", (240, 360), "white").save(path, **({"exif": turned} if path.suffix == ".JPG" else {}))
    Image.fromarray(np.full((12, 10), 30_000, np.uint16)).save(files[4])
    before = [path.read_bytes() for path in files]
    out = tmp_path / "out"
    out.mkdir()
    titles = [str(path) for path in files]
    draw_predictions(predicted([FOUND] * 5, titles, [(240, 360)] * 5), files, out)
    assert sorted(path.name for path in out.iterdir()) == ["a-2.JPG", "a-2.png", "a.JPG", "a.png", "grey.png"]
    assert [path.read_bytes() for path in files] == before
    with Image.open(out / "a-2.JPG") as jpeg, Image.open(out / "grey.png") as grey:
        assert (jpeg.format, jpeg.size) == ("JPEG", (360, 240))
        assert grey.size == (270, 324)
    with Image.open(out / "a.png") as drawn:
        blue = tuple(int(class_colour(1)[start : start + 2], 16) for start in (1, 3, 5))
        assert drawn.convert("RGB").getpixel((60, 20)) == blue
    again = draw_prediction(read_image(files[2]), predicted()[0])
    assert again.getpixel((60, 20)) == blue
