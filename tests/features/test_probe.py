"""pytest tests/features/test_probe.py"""

import time

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from vismoe.features import linear_probe


def clusters(number, dim, classes, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % classes
    centres = torch.randn(classes, dim, generator=generator) * spread
    return centres[labels] + torch.randn(number, dim, generator=generator), labels


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_an_nn_linear_of_it_is_scikit_learn_s(classes, class_weight):
    """Put into an nn.Linear for the features as they are, probabilities are those of scikit-learn's own pipeline of
    scaling and regression, for two classes too."""
    x, labels = clusters(90, 6, classes)
    x, labels = (x * 7 + 3)[10:], labels[10:]
    weight, bias = linear_probe(x, labels, class_weight, strengths=(0.1,))
    head = nn.Linear(6, classes)
    head.load_state_dict({"weight": weight, "bias": bias})
    scaled = StandardScaler().fit_transform(x.double())
    expected = LogisticRegression(C=0.1, class_weight=class_weight, tol=1e-6).fit(scaled, labels).predict_proba(scaled)
    np.testing.assert_allclose(head(x).softmax(1).detach(), expected, atol=2e-3)


def test_the_strength_is_chosen():
    """On pure noise the strongest regularisation wins, on classes far apart a weaker one; on new images the choice is
    at least as good, in cross-entropy, as either end of the grid."""
    x, labels = clusters(120, 30, 3, spread=0.0)
    assert torch.equal(linear_probe(x, labels)[0], linear_probe(x, labels, strengths=(0.001,))[0])
    every, classes = clusters(360, 30, 3, spread=0.6)

    def loss(strengths):
        weight, bias = linear_probe(every[:120], classes[:120], strengths=strengths)
        return nn.functional.cross_entropy(every[120:] @ weight.T + bias, classes[120:]).item()

    chosen = loss((0.001, 0.01, 0.1, 1.0))
    assert chosen <= min(loss((0.001,)), loss((1.0,))) + 1e-3


def test_rare_classes():
    """Two images of a class make two folds, one none; no warning, and the same weights again."""
    x, labels = clusters(40, 5, 2, spread=3.0)
    for rare in (1, 2):
        more, numbers = torch.cat([x, 20 + torch.randn(rare, 5)]), torch.cat([labels, torch.full((rare,), 2)])
        weight, bias = linear_probe(more, numbers, "balanced")
        assert weight.shape == (3, 5)
        assert (more @ weight.T + bias).argmax(1)[-1] == 2
        assert torch.equal(linear_probe(more, numbers, "balanced")[0], weight)


def test_several_classes_a_image():
    """One regression a class: each is scikit-learn's own; one that never occurs gets a small share and no weight."""
    x, _ = clusters(80, 6, 2)
    labels = torch.stack([x[:, 0] > 0, x[:, 1] + x[:, 2] > 0.5, torch.zeros(80, dtype=torch.bool)], 1)
    weight, bias = linear_probe(x, labels, strengths=(0.1,))
    scaled = StandardScaler().fit_transform(x.double())
    for k in (0, 1):
        expected = LogisticRegression(C=0.1, tol=1e-6).fit(scaled, labels[:, k]).predict_proba(scaled)[:, 1]
        np.testing.assert_allclose((x @ weight[k] + bias[k]).sigmoid(), expected, atol=2e-3)
    assert not weight[2].any()
    assert bias[2].sigmoid().item() == pytest.approx(0.5 / 81)
    assert linear_probe(x, labels)[0].shape == (3, 6)


def test_what_cannot_be_learned_is_refused():
    """One class, or one without images."""
    for labels in (torch.zeros(4, dtype=torch.int64), torch.tensor([0, 2, 2, 0])):
        with pytest.raises(ValueError, match="expected two classes or more"):
            linear_probe(torch.randn(4, 3), labels)


def test_it_is_quick():
    """3,000 images, 384 features, 22 classes: well under half a minute of one core (about a second when measured)."""
    x, labels = clusters(3000, 384, 22, spread=0.1)
    start = time.process_time()
    linear_probe(x, labels)
    assert time.process_time() - start < 30
