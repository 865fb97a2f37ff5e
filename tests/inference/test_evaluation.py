"""pytest tests/inference/test_evaluation.py: what an evaluation says, against figures worked out by hand."""

import math

import pytest
import torch
from PIL import Image
from torch import nn

from vismoe.data import ImageSet
from vismoe.inference import evaluate

from ..memory import printed

PROBABILITIES = [[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.4, 0.5, 0.1], [0.9, 0.05, 0.05]]


class Table(nn.Module):
    """Gives the i-th row of PROBABILITIES for an image of grey level i."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(PROBABILITIES).log())
        self.pretrained_cfg = {"input_size": (1, 2, 2), "mean": (0,), "std": (1,), "crop_pct": 1.0}

    def forward(self, images):
        return self.logits[(images[:, 0, 0, 0] * 255).round().long()]


def test_by_hand():
    """Two hits of four, classes 0 and 1 half each, class 2 without images, every image in a bin of its own."""
    images = ImageSet(torch.tensor([0, 1, 0, 1]), lambda number: Image.new("L", (2, 2), number))
    found = evaluate(Table(), images)
    assert found.scores.argmax(1).tolist() == [0, 1, 1, 0]
    assert (found.score, found.metrics["top1"], found.metrics["top5"]) == (0.5, 0.5, 1.0)
    assert found.per_class[:2] == [0.5, 0.5]
    assert math.isnan(found.per_class[2])
    # Each image is alone in its bin: |1 - 0.7|, |1 - 0.6|, |0 - 0.5|, |0 - 0.9|.
    assert found.metrics["calibration_error"] == pytest.approx((0.3 + 0.4 + 0.5 + 0.9) / 4, abs=1e-6)
    expected = -sum(math.log(p) for p in (0.7, 0.6, 0.4, 0.05)) / 4
    assert found.metrics["loss"] == pytest.approx(expected, abs=1e-6)


def test_nothing_to_evaluate():
    """An empty set is refused, in words."""
    with pytest.raises(ValueError, match="there are no images to evaluate on"):
        evaluate(Table(), ImageSet(torch.empty(0, dtype=torch.long), lambda number: Image.new("L", (2, 2))))


MEMORY = """
import torch
from PIL import Image
from torch import nn
from vismoe.data import ImageSet
from vismoe.inference import evaluate

class Classifier(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(1, classes))
        self.pretrained_cfg = {"input_size": (1, 2, 2), "mean": (0,), "std": (1,), "crop_pct": 1.0}

    def forward(self, images):
        return self.logits.expand(len(images), -1)

def run(images, classes):
    found = ImageSet(torch.arange(images) % classes, lambda number: Image.new("L", (2, 2), 0))
    evaluate(Classifier(classes), found, batch_size=64)

return_freed()
run(64, 10)
before = peak()
run(2048, 20_000)
print(peak() - before)
"""


def test_memory():
    """The scores, which are the largest thing there is where classes are many, are there no more than twice."""
    (more,) = printed(MEMORY)
    assert 0.9 < more / (2048 * 20_000 * 4) < 2.2
