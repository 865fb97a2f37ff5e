"""pytest tests/features/test_fewshot.py"""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from vismoe.data import Data, ImageSet, open_data
from vismoe.features import L2_GRID, check_shots, draw, few_shot, ridge
from vismoe.features.fewshot import REFERENCE_GRID, VALIDATION, best_rank


class Pixels(nn.Module):
    """The pixels themselves as features."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.pretrained_cfg = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,), "crop_pct": 1.0}
        self.num_classes, self.in_chans = 0, 1

    def forward(self, x):
        return (x * self.scale).flatten(1)


def test_draws():
    """So many of each class, others to choose by, no image in both; fewer shots are among more; seeds differ."""
    labels = torch.arange(200) % 4
    for shots in (1, 5, 40):
        drawn, others = draw(labels, shots, seed=0)
        assert labels[drawn].bincount().tolist() == [shots] * 4
        assert labels[others].bincount().tolist() == [min(VALIDATION, 50 - shots)] * 4
        assert not set(drawn) & set(others)
    assert set(draw(labels, 1, 0)[0]) < set(draw(labels, 5, 0)[0])
    assert draw(labels, 5, 0) == draw(labels, 5, 0) != draw(labels, 5, 1)
    with pytest.raises(ValueError, match="50 shots, but class 0 has 50 images"):
        draw(labels, 50, 0)


def test_figures_are_those_of_the_drawn_images():
    """On the digits' pixels: the accuracy of a seed is that of the regression on what it draws, judged on the held-out
    part; more shots teach more, with neighbours too."""
    data = open_data("digits")
    one, ten = few_shot(Pixels(), data, shots=(1, 10), seeds=2)
    pixels = {
        id(split): np.stack([np.asarray(split.image(i), float).ravel() for i in range(len(split))])
        for split in data.train_and_val
    }
    train, val = (torch.from_numpy(pixels[id(split)]) / 127.5 - 1 for split in data.train_and_val)
    for seed in range(2):
        drawn, _ = draw(data.train.labels, 10, seed)
        assert ten.l2 in L2_GRID
        weight, bias = ridge(train[drawn], data.train.labels[drawn], 10, (ten.l2,))
        expected = ((val @ weight[0].T + bias[0]).argmax(1) == data.val.labels).double().mean().item()
        assert ten.closed_form[seed] == pytest.approx(expected, abs=1 / 450)
    assert len(load_digits().target) == sum(map(len, data.train_and_val))
    assert 0.3 < np.mean(one.closed_form) + 0.1 < np.mean(ten.closed_form)
    assert 0.3 < np.mean(one.neighbours) + 0.1 < np.mean(ten.neighbours)
    assert few_shot(Pixels(), data, shots=(10,), seeds=2) == [ten]


def test_the_reference_s_protocol():
    """On the digits' pixels: the regularisation is that of the highest mean rank, over seeds, of the accuracy on the
    held-out part, of the thirty that the reference tries; by hand, with NumPy. A class gives all it has."""
    data = open_data("digits")
    (found,) = few_shot(Pixels(), data, shots=(5,), seeds=3, protocol="reference")
    train, val = (
        np.stack([np.asarray(split.image(i), np.float32).ravel() for i in range(len(split))]) / 127.5 - 1
        for split in data.train_and_val
    )
    accuracies = []
    for seed in range(3):
        drawn, others = draw(data.train.labels, 5, seed, "reference")
        assert (drawn, others) == (draw(data.train.labels, 5, seed)[0], [])
        weight, bias = ridge(torch.from_numpy(train[drawn]), data.train.labels[drawn], 10, REFERENCE_GRID)
        scores = np.einsum("nd,lkd->lnk", val, weight.numpy()) + bias.numpy()[:, None]
        accuracies.append((scores.argmax(-1) == data.val.labels.numpy()).mean(1))
    ranks = np.argsort(np.argsort(accuracies, 1, kind="stable"), 1)
    best = int(ranks.mean(0).argmax())
    assert REFERENCE_GRID[0] == 2**-10
    assert REFERENCE_GRID[-1] == 2**19
    assert found.l2 == REFERENCE_GRID[best]
    assert found.closed_form == pytest.approx([row[best] for row in accuracies], abs=1 / 450)
    assert [len(part) for part in draw(torch.tensor([0, 0, 0, 1]), 2, 0, "reference")] == [3, 0]


def test_ranks_not_means_choose():
    """One seed in which a regularisation is far ahead does not outweigh two in which another is a little ahead."""
    accuracies = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.5, 0.1], [0.4, 0.5, 0.1]])
    assert best_rank(accuracies) == 1
    assert best_rank(torch.tensor([[0.5, 0.7, 0.7]])) == 2


def test_sets_that_are_none_to_draw_from():
    """No training split, several classes per image, too few images: an error before anything is computed."""
    images = ImageSet(torch.tensor([0, 0, 0, 1, 1]), lambda index: None)
    several = ImageSet(torch.ones(4, 2, dtype=torch.bool), lambda index: None)
    with pytest.raises(ValueError, match="has no training split"):
        check_shots(Data("cats", ["a", "b"], None, images), (1,))
    with pytest.raises(ValueError, match="several classes per image"):
        check_shots(Data("cats", ["a", "b"], several, several), (1,))
    data = Data("cats", ["a", "b"], images, images)
    assert check_shots(data, (1, 2)) == [1]
    assert check_shots(data, (1, 2, 3), "reference") == [1, 2, 3]
    with pytest.raises(ValueError, match="2 shots, but b has 2 training images"):
        check_shots(data, (2, 3))
    with pytest.raises(ValueError, match="too few training images for"):
        few_shot(Pixels(), data, (1, 2))
    with pytest.raises(ValueError, match="at least 1"):
        check_shots(data, (0, 1))
