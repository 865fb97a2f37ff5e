"""Few-shot accuracy: classifiers on frozen features, fitted on a few images per class."""

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
"""Max number of images per class that select the regularisation."""
REFERENCE_GRID = tuple(2.0**exponent for exponent in range(-10, 20))
"""The regularisations of the reference (google-research/vmoe, configs/common_fewshot.py)."""
Protocol = Literal["validated", "reference"]


@dataclass(frozen=True)
class FewShot:
    """Few-shot accuracies on `Data.val`, between 0 and 1, one per seed.

    - `shots`: training images per class.
    - `l2`: regularisation of `closed_form`.
    - `closed_form`: accuracies of least squares in closed form.
    - `neighbours`: accuracies of the 20 nearest neighbours.
    """

    shots: int
    l2: float
    closed_form: list[float]
    neighbours: list[float]


def draw(
    labels: Int[Tensor, " N"], shots: int, seed: int, protocol: Protocol = "validated"
) -> tuple[list[int], list[int]]:
    """Draws `shots` images per class for training, and up to VALIDATION others per class for selection.

    With the same seed, fewer shots are a subset of more. The protocol "reference" draws no others, and takes all images
    of a class with fewer than `shots`.

    **Arguments:**

    - `labels`: classes of N images.
    - `shots`: number of training images per class.
    - `seed`: seed of the draw.
    - `protocol`: "validated" or "reference", see `few_shot`; default "validated".

    **Returns:** indices of the training images, and of the others.

    **Raises:** ValueError in the protocol "validated" if a class has no more than `shots` images.
    """
    drawn, others = [], []
    for number in labels.unique().tolist():
        places = (labels == number).nonzero()[:, 0]
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(mix_seeds(seed, number)))
        drawn += places[order[:shots]].tolist()
        if protocol == "validated":
            if len(places) <= shots:
                raise ValueError(
                    f"{shots} shots, but class {number} has {len(places)} images: use fewer shots than images"
                )
            others += places[order[max(shots, len(places) - VALIDATION) :]].tolist()
    return drawn, others


def check_shots(data: Data, shots: Sequence[int], protocol: Protocol = "validated") -> list[int]:
    """Returns those of `shots` for which each class has enough training images, at least one more. The protocol
    "reference" accepts all.

    **Arguments:**

    - `data`: the data set.
    - `shots`: numbers of training images per class.
    - `protocol`: "validated" or "reference", see `few_shot`; default "validated".

    **Raises:** ValueError if none is left, and for a data set with no training split, one class, or several classes per
    image.
    """
    if data.train is None:
        raise ValueError(f"{data.name} has no training split: expected train/ and val/, or a folder without splits")
    if len(data.classes) < 2:
        raise ValueError(f"{data.name} has one class, {data.classes[0]}: few-shot accuracy needs at least two")
    if data.has_boxes:
        raise ValueError(f"{data.name} has boxes: few-shot accuracy needs images with one class each")
    if data.multi_label:
        raise ValueError(f"{data.name} has several classes per image: few-shot accuracy needs one")
    if not shots or min(shots) < 1:
        raise ValueError(f"shots={tuple(shots)}: each must be at least 1")
    if protocol == "reference":
        return list(shots)
    count = data.train.labels.bincount(minlength=len(data.classes)).tolist()
    fewest = min(range(len(count)), key=count.__getitem__)
    possible = [number for number in shots if number < count[fewest]]
    if not possible:
        raise ValueError(
            f"{data.name}: {min(shots)} shots, but {data.classes[fewest]} has {count[fewest]} training images: "
            "use fewer shots than images"
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
    """Few-shot accuracy of a frozen network on all of `data.val`. Each seed draws other training images. All seeds with
    the same number of shots share one regularisation.

    **Arguments:**

    - `model`: the network.
    - `data`: a data set with a training split and one class per image.
    - `shots`: numbers of training images per class; default 1, 5, 10, 25.
    - `seeds`: number of seeds; default 3.
    - `batch_size`: images per forward pass; default 64.
    - `workers`: number of data loading worker processes; default 0: the current process.
    - `watch`: called after each batch with the number of images done and the total; default: no call.
    - `protocol`: how the regularisation is selected. Default "validated": from L2_GRID, by the highest mean accuracy on
      up to VALIDATION further training images per class; of equals the strongest. "reference": from REFERENCE_GRID, by
      the highest mean rank over seeds on `data.val` itself, as in google-research/vmoe (evaluate/fewshot.py, which
      averages over data sets too), for comparison with published accuracies. These are slightly optimistic.

    **Returns:** a `FewShot` for each of `shots`.

    **Raises:** ValueError if a class has too few images, or images have several classes.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: it must be at least 1")
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol={protocol!r}: accepted are {', '.join(get_args(Protocol))}")
    if missing := [number for number in shots if number not in check_shots(data, shots, protocol)]:
        raise ValueError(f"{data.name}: some class has too few training images for {missing} shots; use fewer")
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
    """The index of the highest mean rank, the first of equals. Of equal accuracies the later one ranks higher."""
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
