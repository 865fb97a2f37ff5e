"""pytest tests/features/test_neighbours.py"""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from vismoe.features import nearest_neighbours

GENERATOR = torch.Generator().manual_seed(0)
KNOWN, ASKED = torch.randn(60, 8, generator=GENERATOR), torch.randn(1100, 8, generator=GENERATOR)
LABELS = torch.arange(60) % 4


@pytest.mark.parametrize("k", [1, 5, 20])
def test_equal_votes_are_scikit_learn_s(k):
    """With equal weights each class's share is that of scikit-learn's classifier by cosine distance."""
    expected = KNeighborsClassifier(k, metric="cosine").fit(KNOWN, LABELS).predict_proba(ASKED)
    found = nearest_neighbours(KNOWN, LABELS, ASKED, 4, k, temperature=math.inf)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_weighted_votes():
    """Weights are exp(cosine / 0.07): a plain loop over the neighbours gives the same shares."""
    found = nearest_neighbours(KNOWN, LABELS, ASKED[:5], 4)
    for asked, shares in zip(ASKED, found, strict=False):
        cosine = torch.nn.functional.cosine_similarity(asked[None], KNOWN)
        votes = torch.zeros(4)
        for place in cosine.argsort(descending=True)[:20]:
            votes[LABELS[place]] += math.exp(cosine[place] / 0.07)
        torch.testing.assert_close(shares, votes / votes.sum())


def test_fewer_than_k_all_vote():
    """Three images, k=20; what makes no sense is refused."""
    found = nearest_neighbours(KNOWN[:3], LABELS[:3], ASKED[:2], 4, temperature=math.inf)
    torch.testing.assert_close(found, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0]] * 2))
    with pytest.raises(ValueError, match="k=0: it must be at least 1"):
        nearest_neighbours(KNOWN, LABELS, ASKED, 4, k=0)
