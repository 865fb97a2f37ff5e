"""How much a few images of each class teach, given a frozen network."""

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
"""So many images of a class, at most, choose the regularisation."""
REFERENCE_GRID = tuple(2.0**exponent for exponent in range(-10, 20))
"""The regularisations that the reference tries (google-research/vmoe, configs/common_fewshot.py)."""
Protocol = Literal["validated", "reference"]


@dataclass(frozen=True)
class FewShot:
    """What `shots` images of each class taught: the accuracy on the held-out part for each seed, in 0…1, of least
    squares in closed form (`closed_form`, regularised by `l2`) and of the nearest neighbours."""

    shots: int
    l2: float
    closed_form: list[float]
    neighbours: list[float]


def draw(
    labels: Int[Tensor, " N"], shots: int, seed: int, protocol: Protocol = "validated"
) -> tuple[list[int], list[int]]:
    """The places of `shots` images of each class, and of up to VALIDATION others of each. Of one seed, fewer shots
    are among more. By the reference's protocol no others, and all images of a class that has fewer.

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
    """Those of `shots` that every class of the training part has images enough for, one more than shots; all of them
    by the reference's protocol, which takes what there is.

    **Raises:** ValueError where there is none, or the set is not one to draw from.
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
    watch: Callable[[int, int], None] = lambda done, of: None,
    protocol: Protocol = "validated",
) -> list[FewShot]:
    """Few-shot accuracy of a frozen network on the whole held-out part; each seed draws from the training part anew.
    One regularisation serves all seeds of as many shots.

    **Arguments:** `watch`: is told now and then of how many images the features are there, and of how many in all;
    `protocol`: how the regularisation is chosen. "validated": of L2_GRID, that of the highest mean accuracy on up to
    VALIDATION more images a class, of the training part too; among equals the strongest. "reference": of
    REFERENCE_GRID, that of the highest mean rank on the held-out part itself, over seeds, as google-research/vmoe does
    (evaluate/fewshot.py; there over sets too): for figures to compare with published ones, a little above what images
    that nothing was chosen by would give.

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
    of = len(used) + len(data.val)
    known = features(model, data.train.subset(used), batch_size, workers, watch=lambda done, _: watch(done, of))
    held_out = features(model, data.val, batch_size, workers, watch=lambda done, _: watch(len(used) + done, of))

    grid = REFERENCE_GRID if protocol == "reference" else L2_GRID
    found = []
    for number, pairs in draws.items():
        solved, chosen, near = [], [], []
        for drawn, others in pairs:
            x, y = known[row[drawn]], labels[drawn]
            solved.append(ridge(x, y, classes, grid))
            by = (held_out, data.val.labels) if protocol == "reference" else (known[row[others]], labels[others])
            chosen.append(_accuracies(*solved[-1], *by))
            votes = nearest_neighbours(x, y, held_out, classes)
            near.append(_share(votes, data.val.labels))
        best = best_rank(torch.stack(chosen)) if protocol == "reference" else _best_mean(torch.stack(chosen))
        accuracies = [
            _accuracies(weight[best : best + 1], bias[best : best + 1], held_out, data.val.labels).item()
            for weight, bias in solved
        ]
        found.append(FewShot(number, grid[best], accuracies, near))
    return found


def _best_mean(accuracies: Float[Tensor, "seeds L"]) -> int:
    mean = accuracies.mean(0)
    return int((mean == mean.max()).nonzero()[-1])


def best_rank(accuracies: Float[Tensor, "seeds L"]) -> int:
    """The place of the first of the highest mean ranks; among equal accuracies the later ranks higher."""
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
