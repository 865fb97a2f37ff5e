"""Probabilities that mean what they say: a temperature, fitted on images that were not trained on."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vismoe.features.features import classifiers

LOWEST, HIGHEST, ROUNDS = 0.05, 20.0, 60
ENOUGH = 50
"""So many images, at least, a temperature is fitted on: of a dozen it follows chance."""


def fit_temperature(scores: Float[Tensor, "N K"], labels: Int[Tensor, " N"] | Bool[Tensor, "N K"]) -> float:
    """What logits are to be divided by for the least cross-entropy (Guo et al. 2017), between 0.05 and 20.

    The loss is convex in the inverse of the temperature: a golden-section search on its logarithm finds the least.
    """

    def loss(log: float) -> float:
        scaled = scores.double() / torch.tensor(log, dtype=torch.float64).exp()
        if labels.ndim == 2:
            return F.binary_cross_entropy_with_logits(scaled, labels.double()).item()
        return F.cross_entropy(scaled, labels).item()

    low, high = torch.tensor([LOWEST, HIGHEST]).log().tolist()
    golden = (5**0.5 - 1) / 2
    for _ in range(ROUNDS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return float(torch.tensor((low + high) / 2).exp())


@torch.no_grad()
def divide_logits(model: nn.Module, temperature: float) -> bool:
    """Builds a temperature into a network's classifier, so that whoever runs it gets it; False, and nothing done, where
    that is no one linear layer."""
    heads = classifiers(model)
    if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
        return False
    for parameter in heads[0].parameters():
        parameter.div_(temperature)
    return True
