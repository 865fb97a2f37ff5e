"""Linear probe: logistic regression on frozen features."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

FOLDS = 3
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""scikit-learn's C for standardised features: a larger C regularises less."""


def linear_probe(
    train_x: Float[Tensor, "N d"],
    train_y: Int[Tensor, " N"] | Bool[Tensor, "N K"],
    class_weight: Literal["balanced"] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> tuple[Float[Tensor, "K d"], Float[Tensor, " K"]]:
    """Fits a linear classifier by multinomial logistic regression (scikit-learn's, L-BFGS) on standardised features;
    with several classes per image, by one regression per class.

    The strength is selected by cross-validation: lowest cross-entropy over FOLDS folds, which are stratified with one
    class per image. If the rarest class has fewer images, there are as many folds as that; if it has one image, there
    are none and the smallest strength is used.

    **Arguments:**

    - `train_x`: features of N images.
    - `train_y`: each image's class, or with several classes per image a mask of K classes.
    - `class_weight`: "balanced": all classes weigh the same, in the fit and in the selection; default None: all images
      do.
    - `strengths`: values of scikit-learn's C to select from; default STRENGTHS.
    - `seed`: seed of the folds; default 0.

    **Returns:** weight and bias of an `nn.Linear` whose outputs are logits.

    **Raises:** ValueError if there are fewer than two classes, or a class without images. With several classes per
    image, a class without images gets a constant logit.
    """
    y = train_y.numpy()
    if y.ndim == 1 and ((count := np.bincount(y)).size < 2 or not count.all()):
        raise ValueError(f"images per class: {count.tolist()}; expected two classes or more, each with images")
    x = train_x.double().numpy()
    mean, std = x.mean(0), x.std(0) + 1e-5
    x = (x - mean) / std
    strengths = sorted(strengths)
    strengths = strengths[: 1 + _best_strength(x, y, strengths, class_weight, seed)]
    w = _fit_strengths(x, y, strengths, class_weight)[-1]
    weight = w[:, :-1] / std
    bias = w[:, -1] - weight @ mean
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


def _best_strength(x: np.ndarray, y: np.ndarray, strengths: Sequence[float], class_weight: Any, seed: int) -> int:
    """The index of the strength with the lowest cross-entropy on the images left out of the fit."""
    folds = min(FOLDS, len(y) if y.ndim == 2 else int(np.bincount(y).min()))
    if len(strengths) == 1 or folds < 2:
        return 0
    from sklearn.model_selection import KFold, StratifiedKFold  # its import takes a second

    kind = KFold if y.ndim == 2 else StratifiedKFold
    parts: Iterable[Any] = kind(folds, shuffle=True, random_state=seed).split(x, y)
    losses = np.zeros(len(strengths))
    for fitted, rest in parts:
        for place, w in enumerate(_fit_strengths(x[fitted], y[fitted], strengths, class_weight)):
            losses[place] += _cross_entropy(x[rest] @ w[:, :-1].T + w[:, -1], y[rest], class_weight)
    return int(losses.argmin())


def _cross_entropy(scores: np.ndarray, y: np.ndarray, class_weight: Any) -> float:
    logits, labels = torch.from_numpy(scores), torch.from_numpy(y)
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits)).item()
    weight = 1 / labels.bincount(minlength=logits.shape[1]).clamp(min=1) if class_weight else None
    return F.cross_entropy(logits, labels, None if weight is None else weight.to(logits)).item()


def _fit_strengths(x: np.ndarray, y: np.ndarray, strengths: Sequence[float], class_weight: Any) -> list[np.ndarray]:
    """Weights with the bias as last column, (K, d + 1), for each of the strengths, in ascending order."""
    if y.ndim == 2:
        columns = [_regressions(x, column, strengths, class_weight) for column in y.T]
        return [np.concatenate(of_classes) for of_classes in zip(*columns, strict=True)]
    coefficients = _regressions(x, y, strengths, class_weight)
    # With two classes scikit-learn returns the difference of their logits.
    return [np.concatenate([-w / 2, w / 2]) if len(w) == 1 else w for w in coefficients]


def _regressions(x: np.ndarray, y: np.ndarray, strengths: Sequence[float], class_weight: Any) -> list[np.ndarray]:
    if y.dtype == bool and (y.all() or not y.any()):
        share = (y.sum() + 0.5) / (len(y) + 1)
        return [np.append(np.zeros(x.shape[1]), np.log(share / (1 - share)))[None]] * len(strengths)
    from sklearn.linear_model import LogisticRegression  # its import takes a second

    coefficients = []
    model = LogisticRegression(class_weight=class_weight, warm_start=True, max_iter=2000)
    for strength in strengths:  # each starts from the previous solution
        model.set_params(C=strength).fit(x, y)
        coefficients.append(np.hstack([model.coef_, model.intercept_[:, None]]))
    return coefficients
