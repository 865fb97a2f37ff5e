"""How much a few pictures of each class teach, given a frozen network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vismoe.data import Data, mix_seeds

from .features import features
from .neighbours import nearest_neighbours
from .ridge import L2_GRID, ridge

VALIDATION = 25
"""So many pictures of a class, at most, choose the regularisation."""


@dataclass(frozen=True)
class FewShot:
    """What `shots` pictures of each class taught: the accuracy on the held-out part for each seed, in 0…1, of least
    squares in closed form (`closed_form`, regularised by `l2`) and of the nearest neighbours."""

    shots: int
    l2: float
    closed_form: list[float]
    neighbours: list[float]


def draw(labels: Int[Tensor, " N"], shots: int, seed: int) -> tuple[list[int], list[int]]:
    """The places of `shots` pictures of each class, and of up to VALIDATION others of each. Of one seed, fewer shots
    are among more.

    **Raises:** ValueError where a class has no more than `shots` pictures.
    """
    drawn, others = [], []
    for number in labels.unique().tolist():
        places = (labels == number).nonzero()[:, 0]
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(mix_seeds(seed, number)))
        if len(places) <= shots:
            raise ValueError(
                f"{shots} shots, but class {number} has {len(places)} pictures: one more than shots is least"
            )
        drawn += places[order[:shots]].tolist()
        others += places[order[max(shots, len(places) - VALIDATION) :]].tolist()
    return drawn, others


def check_shots(data: Data, shots: Sequence[int]) -> list[int]:
    """Those of `shots` that every class of the training part has pictures enough for, one more than shots.

    **Raises:** ValueError where there is none, or the set is not one to draw from.
    """
    if data.train is None:
        raise ValueError(f"{data.name} has no part to draw from: expected train/ beside val/, or a folder in one piece")
    if len(data.classes) < 2:
        raise ValueError(f"{data.name} has one class, {data.classes[0]}: few-shot accuracy needs at least two")
    if data.multi_label:
        raise ValueError(f"{data.name} has several classes a picture: few-shot accuracy needs one")
    if not shots or min(shots) < 1:
        raise ValueError(f"shots={tuple(shots)}: each must be at least 1")
    count = data.train.labels.bincount(minlength=len(data.classes)).tolist()
    fewest = min(range(len(count)), key=count.__getitem__)
    possible = [number for number in shots if number < count[fewest]]
    if not possible:
        raise ValueError(
            f"{data.name}: {min(shots)} shots, but {data.classes[fewest]} has {count[fewest]} pictures to train on: "
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
) -> list[FewShot]:
    """Few-shot accuracy of a frozen network on the whole held-out part; each seed draws from the training part anew.
    One regularisation of L2_GRID serves all seeds of as many shots: that of the highest mean accuracy on up to
    VALIDATION more pictures a class, of the training part too; among equals the strongest.

    **Arguments:** `watch`: is told now and then of how many pictures the features are there, and of how many in all.

    **Raises:** ValueError where a class has too few pictures, or the set has several classes a picture.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: it must be at least 1")
    if missing := [number for number in shots if number not in check_shots(data, shots)]:
        raise ValueError(f"{data.name}: some class has too few pictures to train on for {missing} shots")
    assert data.train is not None
    labels, classes = data.train.labels, len(data.classes)
    draws = {number: [draw(labels, number, seed) for seed in range(seeds)] for number in shots}
    used = sorted({place for pairs in draws.values() for pair in pairs for part in pair for place in part})
    row = torch.zeros(len(labels), dtype=torch.int64)
    row[used] = torch.arange(len(used))
    of = len(used) + len(data.val)
    known = features(model, data.train.subset(used), batch_size, workers, watch=lambda done, _: watch(done, of))
    held_out = features(model, data.val, batch_size, workers, watch=lambda done, _: watch(len(used) + done, of))

    found = []
    for number, pairs in draws.items():
        solved, chosen, near = [], [], []
        for drawn, others in pairs:
            x, y = known[row[drawn]], labels[drawn]
            solved.append(ridge(x, y, classes, L2_GRID))
            chosen.append(_accuracies(*solved[-1], known[row[others]], labels[others]))
            votes = nearest_neighbours(x, y, held_out, classes)
            near.append(_share(votes, data.val.labels))
        mean = torch.stack(chosen).mean(0)
        best = int((mean == mean.max()).nonzero()[-1])
        accuracies = [
            _accuracies(weight[best : best + 1], bias[best : best + 1], held_out, data.val.labels).item()
            for weight, bias in solved
        ]
        found.append(FewShot(number, L2_GRID[best], accuracies, near))
    return found


def _accuracies(
    weight: Float[Tensor, "L K d"], bias: Float[Tensor, "L K"], x: Float[Tensor, "N d"], y: Int[Tensor, " N"]
) -> Float[Tensor, " L"]:
    x = x.double()
    hits = [((x @ w.T + b).argmax(1) == y).double().mean() for w, b in zip(weight, bias, strict=True)]
    return torch.stack(hits)


def _share(scores: Float[Tensor, "N K"], y: Int[Tensor, " N"]) -> float:
    return (scores.argmax(1) == y).double().mean().item()
