"""pytest tests/test_benchmark_boxes.py: the boxes of the sets of detection_sets.py are where the objects are."""

import json
import random
from itertools import combinations
from zipfile import ZipFile

import detection_sets
import pytest
from PIL import Image, ImageChops, ImageDraw

pytestmark = pytest.mark.benchmarks


def test_tiles_cover_an_image_once_and_share_its_boxes():
    """The tiles' areas add up to the image's, and the parts of each box to that box."""
    size, boxes = (
        (1249, 1035),
        [(10.0, 20.0, 30.0, 50.0), (400.0, 330.0, 450.0, 420.0), (1200.0, 1000.0, 1249.0, 1035.0)],
    )
    tiles = list(detection_sets._tiles(size, boxes))
    assert len(tiles) == 9
    assert sum(detection_sets._area(tile) for tile, _ in tiles) == size[0] * size[1]
    assert max(right for (_, _, right, _), _ in tiles) == size[0]
    assert max(bottom for (*_, bottom), _ in tiles) == size[1]
    places = [
        (left + box[0], top + box[1], left + box[2], top + box[3])
        for (left, top, *_), shown in tiles
        for box, _ in shown
    ]
    parts = [[each for each in places if _contains(box, each)] for box in boxes]
    assert [len(each) for each in parts] == [1, 4, 1]
    assert [sum(map(detection_sets._area, each)) for each in parts] == [detection_sets._area(box) for box in boxes]


def _contains(outer, inner):
    return all(outer[i] <= inner[i] for i in (0, 1)) and all(inner[i] <= outer[i] for i in (2, 3))


def test_a_box_of_which_little_is_visible_is_difficult(tmp_path):
    """In the metadata.jsonl; with three quarters visible it is not."""
    wheel = tmp_path / "deepforest.whl"
    edges = "<xmin>380</xmin><ymin>10</ymin><xmax>460</xmax><ymax>30</ymax>"
    with ZipFile(wheel, "w") as files:
        for name in detection_sets.AERIAL:
            Image.new("RGB", (800, 400)).save(tmp_path / "image.png")
            files.write(tmp_path / "image.png", f"deepforest/data/{name}.png")
            files.writestr(f"deepforest/data/{name}.xml", f"<a><object><bndbox>{edges}</bndbox></object></a>")
    (tmp_path / "trees").mkdir()
    detection_sets.make_trees(wheel, tmp_path / "trees")
    first, second, *_ = map(json.loads, (tmp_path / "trees" / "metadata.jsonl").read_text().splitlines())
    assert first["objects"] == {"bbox": [[380, 10, 20, 20]], "category": ["tree"], "difficult": [1]}
    assert second["objects"] == {"bbox": [[0, 10, 60, 20]], "category": ["tree"], "difficult": [0]}
    assert first["source"] == second["source"]


def test_the_box_of_a_sticker_is_where_pixels_changed():
    """To a pixel or two, as the edge of a drawing is soft; no other box covers more than a fifth of it."""
    photograph = Image.new("RGB", (640, 480), "white")
    drawing = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(drawing).ellipse((4, 12, 60, 50), fill="black")
    chance, single = random.Random(0), 0
    for _ in range(40):
        image, objects = detection_sets._scene(photograph, [drawing], chance)
        assert image.size == detection_sets.SIZE
        boxes = [box for _, box in objects]
        assert all(detection_sets._covered(*pair) <= 0.2 for pair in combinations(boxes, 2))
        changed = ImageChops.difference(image, Image.new("RGB", image.size, "white")).convert("L")
        union = [min(box[i] for box in boxes) for i in (0, 1)] + [max(box[i] for box in boxes) for i in (2, 3)]
        found = changed.point(lambda value: 255 * (value > 100)).getbbox()
        assert max(abs(one - other) for one, other in zip(found, union, strict=True)) <= 2
        single += len(boxes) == 1
    assert single > 3
