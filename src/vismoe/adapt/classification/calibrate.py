"""Calibration: a temperature, fitted on images that were not trained on."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vismoe.features.features import classifiers

LOWEST, HIGHEST, ROUNDS = 0.05, 20.0, 60
ENOUGH = 50
"""Smallest number of images on which a temperature is fitted: with fewer images the fit is noisy."""


def fit_temperature(scores: Float[Tensor, "N K"], labels: Int[Tensor, " N"] | Bool[Tensor, "N K"]) -> float:
    """Fits a temperature: dividing the logits by it gives the lowest cross-entropy (Guo et al. 2017).

    Labels are smoothed by 1 / (N + 2) (Platt 1999). Otherwise, if no answer for the N images were wrong, the lowest
    temperature would be chosen, and later errors would have probability 1. The loss is convex in the inverse
    temperature, so a golden-section search on the logarithm finds the minimum.

    **Arguments:**

    - `scores`: logits of N images.
    - `labels`: classes (N,), or (N, K) bool if an image may have several.

    **Returns:** the temperature, between 0.05 and 20.
    """
    smoothing = 1 / (len(labels) + 2)

    def loss(log_temperature: float) -> float:
        scaled = scores.double() / torch.tensor(log_temperature, dtype=torch.float64).exp()
        if labels.ndim == 2:
            targets = labels.double() * (1 - smoothing) + smoothing / 2
            return F.binary_cross_entropy_with_logits(scaled, targets).item()
        return F.cross_entropy(scaled, labels, label_smoothing=smoothing).item()

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
    """Divides weight and bias of a network's classifier by a temperature, in place. Returns False, without a change, if
    the classifier is not one linear layer."""
    heads = classifiers(model)
    if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
        return False
    for parameter in heads[0].parameters():
        parameter.div_(temperature)
    return True
