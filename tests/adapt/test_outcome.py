"""pytest tests/adapt/test_outcome.py: what people are shown of an adapted network's answers."""

import pytest
import torch
from PIL import Image

from vismoe.adapt.classification import outcome
from vismoe.data import ImageSet
from vismoe.tasks import ClassEvaluation


@pytest.mark.figures
def test_captions_of_mistakes(tmp_path, monkeypatch):
    """At one height, whatever shape the images have; an answer without a class is told as one."""
    images = [Image.new("L", size) for size in ((60, 30), (30, 60), (50, 50), (160, 20))]
    labels = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 1]]).bool()
    scores = torch.tensor([[-3.0, -1], [-2, 1], [-1, -1], [2, -2]])
    drawn = []
    monkeypatch.setattr(outcome, "save_figure", lambda figure, path, dpi: drawn.append(figure))
    evaluation = ClassEvaluation({}, 1.0, {}, [], [], labels, scores)
    shown = ImageSet(labels, images.__getitem__)
    assert outcome.draw_mistakes(evaluation, shown, ["round", "red"], tmp_path / "mistakes.png")
    drawn[0].draw_without_rendering()
    titles = [axes.title for axes in drawn[0].axes]
    assert {title.get_text() for title in titles} >= {"round, red\n→ nothing 95%", "round\n→ red 88%"}
    assert len({round(title.get_window_extent().y0) for title in titles}) == 1


@pytest.mark.figures
def test_calibration_says_how_many_answers_a_bin_has(tmp_path, monkeypatch):
    """A bin of few answers is told from one of many: the bars below the curve are as high as there are answers. Where
    no temperature was fitted there is one curve, not one upon the other."""
    drawn = []
    monkeypatch.setattr(outcome, "save_figure", lambda figure, path, dpi: drawn.append(figure))
    scores = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
    found = ClassEvaluation({}, 1.0, {}, [], [], torch.zeros(90, dtype=torch.int64), scores)
    outcome.draw_calibration(found, scores * 3, tmp_path / "calibration.png")
    outcome.draw_calibration(found, scores, tmp_path / "calibration.png")
    for figure, curves in zip(drawn, (2, 1), strict=True):
        axes, counts = figure.axes
        assert len(axes.get_legend().get_texts()) == curves
        assert len(counts.patches) == curves
        confidence = (scores * 3 if curves == 2 else scores).softmax(1).amax(1)
        highest = confidence.histc(10, 0, 1).max()
        assert counts.patches[-1].get_xy()[:, 1].max() == highest
        assert counts.get_ylabel() == "answers per bin"
