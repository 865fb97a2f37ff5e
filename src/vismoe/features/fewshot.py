"""Few-shot accuracy: how much a frozen network learns from a few images of each class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vismoe.data import Data, mix_seeds

from .features import features
from .neighbours import nearest_neighbours
from .ridge import L2_GRID, ridge

VALIDATION = 25
"""At most so many images of a class choose the regularisation."""
REFERENCE_GRID = tuple(2.0**exponent for exponent in range(-10, 20))
"""The regularisations that the reference tries (google-research/vmoe, configs/common_fewshot.py)."""
Protocol = Literal["validated", "reference"]


@dataclass(frozen=True)
class FewShot:
    """Accuracies with `shots` images of each class, for each seed, 0 to 1, on the held-out part.

    - `shots`: images of each class.
    - `l2`: the regularisation of `closed_form`.
    - `closed_form`: accuracies of least squares in closed form.
    - `neighbours`: accuracies of the nearest neighbours.
    """

    shots: int
    l2: float
    closed_form: list[float]
    neighbours: list[float]


def draw(
    labels: Int[Tensor, " N"], shots: int, seed: int, protocol: Protocol = "validated"
) -> tuple[list[int], list[int]]:
    """Draws `shots` images of each class, and up to VALIDATION others of each, as numbers of images.

    With one seed, the images of fewer shots are among those of more. The reference's protocol draws no others, and
    takes all images of a class that has fewer than `shots`.

    **Raises:** ValueError where others are needed and a class has no more than `shots` images.
    """
    drawn, others = [], []
    for number in labels.unique().tolist():
        places = (labels == number).nonzero()[:, 0]
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(mix_seeds(seed, number)))
        drawn += places[order[:shots]].tolist()
        if protocol == "validated":
            if len(places) <= shots:
                raise ValueError(
                    f"{shots} shots, but class {number} has {len(places)} images: one more than shots is least"
                )
            others += places[order[max(shots, len(places) - VALIDATION) :]].tolist()
    return drawn, others


def check_shots(data: Data, shots: Sequence[int], protocol: Protocol = "validated") -> list[int]:
    """Those of `shots` for which every class has enough images in the training part: one more than shots. The
    reference's protocol accepts all of them.

    **Raises:** ValueError where none is left, and for a set that has no training part, one class, or several classes an
    image.
    """
    if data.train is None:
        raise ValueError(f"{data.name} has no part to draw from: expected train/ beside val/, or a folder in one piece")
    if len(data.classes) < 2:
        raise ValueError(f"{data.name} has one class, {data.classes[0]}: few-shot accuracy needs at least two")
    if data.multi_label:
        raise ValueError(f"{data.name} has several classes an image: few-shot accuracy needs one")
    if not shots or min(shots) < 1:
        raise ValueError(f"shots={tuple(shots)}: each must be at least 1")
    if protocol == "reference":
        return list(shots)
    count = data.train.labels.bincount(minlength=len(data.classes)).tolist()
    fewest = min(range(len(count)), key=count.__getitem__)
    possible = [number for number in shots if number < count[fewest]]
    if not possible:
        raise ValueError(
            f"{data.name}: {min(shots)} shots, but {data.classes[fewest]} has {count[fewest]} images to train on: "
            "one more than shots is least"
        )
    return possible


def few_shot(
    model: nn.Module,
    data: Data,
    shots: Sequence[int] = (1, 5, 10, 25),
    seeds: int = 3,
    batch_size: int = 64,
    workers: int = 0,
    watch: Callable[[int, int], None] = lambda done, total: None,
    protocol: Protocol = "validated",
) -> list[FewShot]:
    """Few-shot accuracy of a frozen network on the whole held-out part. Each seed draws other images of the training
    part; one regularisation serves all seeds with the same number of shots.

    **Arguments:**

    - `model`: the network.
    - `data`: a set with a training part and one class an image.
    - `shots`: numbers of images of each class; default 1, 5, 10, 25.
    - `seeds`: number of draws; default 3.
    - `batch_size`: images of a batch; default 64.
    - `workers`: processes that load images; default 0: this one.
    - `watch`: called with the number of images whose features are computed, and of all images; default: nothing.
    - `protocol`: how the regularisation is chosen; default "validated": from L2_GRID, by the highest mean accuracy on
      up to VALIDATION further images a class of the training part, among equals the strongest. "reference": from
      REFERENCE_GRID, by the highest mean rank over seeds on the held-out part itself, as google-research/vmoe does
      (evaluate/fewshot.py; there over sets too), to compare with published figures; a little higher than on images that
      nothing was chosen by.

    **Raises:** ValueError where a class has too few images, or the set has several classes an image.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: it must be at least 1")
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol={protocol!r}: accepted are {', '.join(get_args(Protocol))}")
    if missing := [number for number in shots if number not in check_shots(data, shots, protocol)]:
        raise ValueError(f"{data.name}: some class has too few images to train on for {missing} shots")
    assert data.train is not None
    labels, classes = data.train.labels, len(data.classes)
    draws = {number: [draw(labels, number, seed, protocol) for seed in range(seeds)] for number in shots}
    used = sorted({place for pairs in draws.values() for pair in pairs for part in pair for place in part})
    row = torch.zeros(len(labels), dtype=torch.int64)
    row[used] = torch.arange(len(used))
    total = len(used) + len(data.val)
    train_features = features(
        model, data.train.subset(used), batch_size, workers, watch=lambda done, _: watch(done, total)
    )
    val_features = features(model, data.val, batch_size, workers, watch=lambda done, _: watch(len(used) + done, total))

    grid = REFERENCE_GRID if protocol == "reference" else L2_GRID
    results = []
    for number, pairs in draws.items():
        solved, chosen, neighbour_accuracies = [], [], []
        for drawn, others in pairs:
            x, y = train_features[row[drawn]], labels[drawn]
            solved.append(ridge(x, y, classes, grid))
            validation = (
                (val_features, data.val.labels)
                if protocol == "reference"
                else (train_features[row[others]], labels[others])
            )
            chosen.append(_accuracies(*solved[-1], *validation))
            votes = nearest_neighbours(x, y, val_features, classes)
            neighbour_accuracies.append(_share(votes, data.val.labels))
        best = best_rank(torch.stack(chosen)) if protocol == "reference" else _best_mean(torch.stack(chosen))
        accuracies = [
            _accuracies(weight[best : best + 1], bias[best : best + 1], val_features, data.val.labels).item()
            for weight, bias in solved
        ]
        results.append(FewShot(number, grid[best], accuracies, neighbour_accuracies))
    return results


def _best_mean(accuracies: Float[Tensor, "seeds L"]) -> int:
    mean = accuracies.mean(0)
    return int((mean == mean.max()).nonzero()[-1])


def best_rank(accuracies: Float[Tensor, "seeds L"]) -> int:
    """The place of the first of the highest mean ranks; of equal accuracies the later one ranks higher."""
    ranks = accuracies.argsort(dim=1, stable=True).argsort(dim=1)
    return int(ranks.double().mean(0).argmax())


def _accuracies(
    weight: Float[Tensor, "L K d"], bias: Float[Tensor, "L K"], x: Float[Tensor, "N d"], y: Int[Tensor, " N"]
) -> Float[Tensor, " L"]:
    x = x.double()
    hits = [((x @ w.T + b).argmax(1) == y).double().mean() for w, b in zip(weight, bias, strict=True)]
    return torch.stack(hits)


def _share(scores: Float[Tensor, "N K"], y: Int[Tensor, " N"]) -> float:
    return (scores.argmax(1) == y).double().mean().item()
