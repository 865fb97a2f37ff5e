"""pytest -m browser tests/browser/test_boxes.py: what a detector finds, drawn where it found it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vismoe
from tests.detection.scenes import tiny, write_scenes
from vismoe import Predictor, load

from .test_try import answered

ORANGE, SKY = [230, 159, 0], [86, 180, 233]
"""The colours of the first and the second class."""


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory, sketched: None) -> Path:
    """The run of a tiny detector of red and blue rectangles; its images lie beside it."""
    folder = tmp_path_factory.mktemp("detector")
    vismoe.train(tiny(write_scenes(folder / "scenes"), steps=12), out=folder / "run")
    return folder / "run"


def test_objects_are_listed_and_drawn(open_page: Callable[..., Any], serve: Callable[..., str], detector: Path) -> None:
    image = detector.parent / "scenes" / "images" / "val" / "1.png"
    (expected,) = Predictor(load(detector / "model")).predict([image])
    page = open_page(serve(detector))
    page.set_input_files("#file", image)
    answered(page)
    page.select_option("#try-score", "0")
    shown = page.locator("#try-answer .label").all_text_contents()
    assert shown == [box.name for box in expected.boxes][: len(shown)]
    assert len(shown) == min(20, len(expected.boxes)) > 0
    best = expected.boxes[0]
    left, top, _, bottom = best.box
    colour = page.evaluate(
        """([x, y]) => {
            const canvas = document.getElementById("overlay");
            const scale = canvas.width / document.getElementById("thumbnail").naturalWidth;
            const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            pixel.drawImage(canvas, Math.max(1, x * scale), y * scale, 1, 1, 0, 0, 1, 1);
            return [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }""",
        [left, (top + bottom) / 2],
    )
    assert colour == [ORANGE, SKY][["red", "blue"].index(best.name)]
    page.select_option("#try-score", "0.7")
    surely = [box.name for box in expected.boxes if box.score >= 0.7]
    assert page.locator("#try-answer .label").all_text_contents() == surely
    page.select_option("#try-view", "experts")
    assert page.get_by_role("button", name="Expert 0:").count() == 1


def test_labels_of_objects_do_not_cover_each_other(
    open_page: Callable[..., Any], serve: Callable[..., str], detector: Path
) -> None:
    """Every text that is written on the canvas is told with its place; there is one for each box, or the page says how
    many have none."""
    page = open_page(serve(detector))
    page.evaluate(
        """() => {
            window.written = [];
            const write = CanvasRenderingContext2D.prototype.fillText;
            CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
                const { width } = this.measureText(text);
                const { fontBoundingBoxAscent: up, fontBoundingBoxDescent: down } = this.measureText(text);
                window.written.push([text, x, y - up, x + width, y + down]);
                write.call(this, text, x, y);
            };
        }"""
    )
    page.set_input_files("#file", detector.parent / "scenes" / "images" / "val" / "1.png")
    answered(page)
    page.evaluate("window.written = []")
    page.select_option("#try-score", "0")
    boxes = len(Predictor(load(detector / "model")).predict([detector.parent / "scenes/images/val/1.png"])[0].boxes)
    texts = page.evaluate("window.written")
    assert 1 < len(texts) <= boxes
    for one, (_, left, top, right, bottom) in enumerate(texts):
        for _, left2, top2, right2, bottom2 in texts[:one]:
            assert left >= right2 or left2 >= right or top >= bottom2 or top2 >= bottom
    words = page.locator("#legend").inner_text()
    missing = boxes - len(texts)
    assert ("no label" in words) == (missing > 0)
    assert not missing or words.startswith(f"{missing} box")
