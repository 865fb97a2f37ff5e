"""pytest tests/tasks/test_confusion.py: the confusion matrix as people see it."""

from pathlib import Path

import pytest
import torch

from vismoe.tasks import confusion


def drawn(monkeypatch, labels, predictions, classes):
    figures = []
    monkeypatch.setattr(confusion, "save_figure", lambda figure, path, dpi: figures.append(figure))
    confusion.draw_confusion(torch.tensor(labels), torch.tensor(predictions), classes, Path("unused"))
    figures[0].draw_without_rendering()
    return figures[0]


@pytest.mark.figures
def test_counts_compare(monkeypatch):
    """36 hits are darker than six errors; one class of few images compares with one of many; each cell has its
    count."""
    figure = drawn(monkeypatch, [0] * 42 + [1] * 4, [0] * 36 + [1] * 6 + [1, 1, 1, 0], ["cat", "dog"])
    (image,) = figure.axes[0].images
    assert image.get_array().tolist() == [[36 / 42, 6 / 42], [0.25, 0.75]]
    luminance = image.to_rgba(image.get_array())[..., :3].sum(-1)
    assert luminance[0, 0] < luminance[0, 1]
    assert {text.get_text() for text in figure.axes[0].texts} == {"36", "6", "3", "1"}


@pytest.mark.figures
@pytest.mark.parametrize("classes", [["uninfected", "infected by a parasite of the red blood cells"], ["a", "b"]])
def test_nothing_is_cut(monkeypatch, classes):
    """Title, names and colour bar lie within the figure, of two classes too."""
    figure = drawn(monkeypatch, [0, 1], [0, 1], classes)
    box, axes = figure.bbox, figure.axes[0]
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label, figure._suptitle]
    for text in [*labels, figure.axes[1].yaxis.label]:
        extent = text.get_window_extent()
        assert box.x0 <= extent.x0 <= extent.x1 <= box.x1, text
        assert box.y0 <= extent.y0 <= extent.y1 <= box.y1, text
