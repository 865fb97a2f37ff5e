"""A linear classifier on frozen features: logistic regression."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold
from torch import Tensor
from torch.nn import functional as F

FOLDS = 3
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""scikit-learn's C, for standardised features: the larger, the less regularised."""


def linear_probe(
    train_x: Float[Tensor, "N d"],
    train_y: Int[Tensor, " N"] | Bool[Tensor, "N K"],
    class_weight: Literal["balanced"] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> tuple[Float[Tensor, "K d"], Float[Tensor, " K"]]:
    """Weight and bias of an `nn.Linear` whose outputs are logits: multinomial logistic regression (scikit-learn's, by
    L-BFGS) on standardised features, or, where an image may show several classes, one regression a class.

    Of the `strengths` the one of the least cross-entropy over FOLDS folds of these images is taken. Where each shows
    one class the folds are stratified, and as many as the rarest class has images where these are fewer; where that
    is one, there are no folds and the least strength is taken.

    **Arguments:** `train_y`: the number of each image's class, or which of K are on it; `class_weight`: "balanced"
    makes rare classes count as much as common ones, in the fit as in the choice; `seed`: of the folds.

    **Raises:** ValueError where there are fewer than two classes, or one without images (of several an image: such a
    class is given its share alone).
    """
    y = train_y.numpy()
    if y.ndim == 1 and ((count := np.bincount(y)).size < 2 or not count.all()):
        raise ValueError(f"images of each class: {count.tolist()}; expected two classes or more, each with some")
    x = train_x.double().numpy()
    mean, std = x.mean(0), x.std(0) + 1e-5
    x = (x - mean) / std
    strengths = sorted(strengths)
    strengths = strengths[: 1 + _best(x, y, strengths, class_weight, seed)]
    w = _path(x, y, strengths, class_weight)[-1]
    weight = w[:, :-1] / std
    bias = w[:, -1] - weight @ mean
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


def _best(x: np.ndarray, y: np.ndarray, strengths: Sequence[float], class_weight: Any, seed: int) -> int:
    """The place of the strength of the least cross-entropy on images that were not fitted to."""
    folds = min(FOLDS, len(y) if y.ndim == 2 else int(np.bincount(y).min()))
    if len(strengths) == 1 or folds < 2:
        return 0
    kind = KFold if y.ndim == 2 else StratifiedKFold
    parts: Iterable[Any] = kind(folds, shuffle=True, random_state=seed).split(x, y)
    losses = np.zeros(len(strengths))
    for fitted, rest in parts:
        for place, w in enumerate(_path(x[fitted], y[fitted], strengths, class_weight)):
            losses[place] += _cross_entropy(x[rest] @ w[:, :-1].T + w[:, -1], y[rest], class_weight)
    return int(losses.argmin())


def _cross_entropy(scores: np.ndarray, y: np.ndarray, class_weight: Any) -> float:
    logits, labels = torch.from_numpy(scores), torch.from_numpy(y)
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits)).item()
    weight = 1 / labels.bincount(minlength=logits.shape[1]).clamp(min=1) if class_weight else None
    return F.cross_entropy(logits, labels, None if weight is None else weight.to(logits)).item()


def _path(x: np.ndarray, y: np.ndarray, strengths: Sequence[float], class_weight: Any) -> list[np.ndarray]:
    """Weights with the bias behind them (K, d + 1) for each of rising strengths."""
    if y.ndim == 2:
        columns = [_regressions(x, column, strengths, class_weight) for column in y.T]
        return [np.concatenate(each) for each in zip(*columns, strict=True)]
    found = _regressions(x, y, strengths, class_weight)
    # Of two classes scikit-learn gives the difference of their logits.
    return [np.concatenate([-w / 2, w / 2]) if len(w) == 1 else w for w in found]


def _regressions(x: np.ndarray, y: np.ndarray, strengths: Sequence[float], class_weight: Any) -> list[np.ndarray]:
    if y.dtype == bool and (y.all() or not y.any()):
        share = (y.sum() + 0.5) / (len(y) + 1)
        return [np.append(np.zeros(x.shape[1]), np.log(share / (1 - share)))[None]] * len(strengths)
    found = []
    model = LogisticRegression(class_weight=class_weight, warm_start=True, max_iter=2000)
    for strength in strengths:  # each begins where the one before it ended
        model.set_params(C=strength).fit(x, y)
        found.append(np.hstack([model.coef_, model.intercept_[:, None]]))
    return found
