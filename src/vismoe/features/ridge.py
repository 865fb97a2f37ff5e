"""Least squares in closed form, the reference's few-shot classifier (google-research/vmoe, evaluate/fewshot.py)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

BIAS = 100.0
"""Value of the constant feature: large, so that the bias is hardly regularised."""
L2_GRID = tuple(2.0**exponent for exponent in range(-20, 11))


def ridge(
    x: Float[Tensor, "N d"], labels: Int[Tensor, " N"], num_classes: int, l2: Sequence[float]
) -> tuple[Float[Tensor, "L K d"], Float[Tensor, "L K"]]:
    """Fits a linear classifier by ridge regression for each of L regularisations, in float64.

    Features are standardised (standard deviation + 1e-5) and get the constant feature BIAS. Targets are +1 for the
    image's class and -1 for the others. Minimises ‖XW − Y‖² + l2·‖W‖², including the weight of BIAS:

    - with more images than features, W = (XᵀX + l2)⁻¹ Xᵀ Y, a system of (d + 1)².
    - with fewer, W = Xᵀ (XXᵀ + l2)⁻¹ Y, a system of N²: the same W.

    **Arguments:**

    - `x`: features of N images.
    - `labels`: their classes, 0 to K − 1.
    - `num_classes`: number of classes K.
    - `l2`: L regularisations, each above 0.

    **Returns:** weights and biases, for features that are not standardised.

    **Raises:** ValueError for an l2 that is not above 0.
    """
    if not l2 or min(l2) <= 0:
        raise ValueError(f"l2={tuple(l2)}: it must be above 0")
    x = x.double()
    mean, std = x.mean(0), x.std(0, correction=0) + 1e-5
    x = F.pad((x - mean) / std, (0, 1), value=BIAS)
    y = 2 * F.one_hot(labels, num_classes).to(x) - 1
    fewer = len(x) < x.shape[1]
    gram, target = (x @ x.T, y) if fewer else (x.T @ x, x.T @ y)
    identity, solutions = torch.eye(len(gram)).to(gram), []
    for strength in l2:
        solved = torch.cholesky_solve(target, torch.linalg.cholesky(gram + strength * identity))
        solutions.append(x.T @ solved if fewer else solved)
    w = torch.stack(solutions).mT
    weight = w[..., :-1] / std
    return weight, BIAS * w[..., -1] - weight @ mean
