"""How good a network is on images it has not seen."""

import time
import warnings
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_calibration_error, multilabel_average_precision

from vismoe.data import ImageSet, evaluation_batches, evaluation_transform
from vismoe.moe import record
from vismoe.parallel import Mesh
from vismoe.vit import mean_of_images
from vismoe.weights import as_network, data_config


@dataclass(frozen=True)
class Evaluation:
    """What a network makes of N images.

    `figures`, the first of them the one to go by: where each image shows one class, `top1`, `top5` (top-k where there
    are only k < 5 classes); where it may show several, `mean_average_precision` over the classes that occur and
    `exact_match`, the share of images with every class right at a probability of one half; then `calibration_error`:
    mean distance of confidence and accuracy over 15 bins of confidence (Guo et al. 2017), and mean cross-entropy
    `loss`. All but the last are in 0…1. `per_class`: accuracy on each class's images, or its average precision; NaN
    where there are none. `labels`: as the set has them; `scores` (N, K): logits; `images_per_second` of the forward
    passes alone; `load`: choices of each expert by layer.
    """

    figures: dict[str, float]
    per_class: list[float]
    labels: Tensor
    scores: Tensor
    images_per_second: float
    load: dict[str, list[int]]

    @property
    def score(self) -> float:
        """The figure to go by: the larger, the better."""
        return next(iter(self.figures.values()))

    @property
    def logged(self) -> dict[str, float]:
        """The figures under the names that a run's files give them."""
        return {"val_loss" if name == "loss" else name: value for name, value in self.figures.items()}

    @property
    def right(self) -> Tensor:
        """(N,): whether the answer for each image is right, with every class of it."""
        if self.labels.ndim == 2:
            return ((self.scores > 0) == self.labels).all(1)
        return self.scores.argmax(1) == self.labels


@dataclass(frozen=True)
class Group:
    """How many images of a group were answered right; `low` and `high`: the 95 % interval of that share (Wilson)."""

    name: str
    images: int
    accuracy: float
    low: float
    high: float


@torch.inference_mode()
def evaluate(
    model: nn.Module, images: ImageSet, batch_size: int = 256, workers: int = 0, mesh: Mesh | None = None
) -> Evaluation:
    """Runs a network over a set, once, at evaluation: of an ensemble, the mean of its members' probabilities. Leaves it
    in the mode it was in. The processes of a `mesh` that all call it share the work. Where an image shows one class
    it holds the scores, 4 N K bytes, up to twice at a time.

    Raises:
        ValueError: where the set is empty.
    """
    if not len(images):
        raise ValueError("a set without images: nothing to evaluate")
    mesh = Mesh() if mesh is None or mesh.size > len(images) else mesh
    model = as_network(model)
    mine = torch.arange(mesh.rank, len(images), mesh.size)
    part = images if mesh.size == 1 else images.subset(mine.tolist())
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    load: dict[str, Tensor] = {}
    scores, done, seconds = torch.empty(0), 0, 0.0
    for batch, _ in evaluation_batches(part, evaluation_transform(data_config(model)), batch_size, workers):
        start = time.perf_counter()
        with record(model) as routing:
            said = model(batch.to(device)).float().cpu()
        said = mean_of_images(said, len(batch), "sigmoid" if images.labels.ndim == 2 else "softmax")
        seconds += time.perf_counter() - start
        if not done:
            scores = torch.zeros(len(images), said.shape[1])
        scores[mine[done : done + len(batch)]] = said
        done += len(batch)
        for name, calls in routing.layers.items():
            counts = torch.stack([call.load.cpu() for call in calls]).sum(0)
            load[name] = load[name] + counts if name in load else counts
    model.train(was_training)
    scores, labels = mesh.sum(scores), images.labels
    figures, per_class = (_of_several if labels.ndim == 2 else _of_one)(scores, labels)
    return Evaluation(
        figures,
        per_class,
        labels,
        scores,
        images_per_second=len(images) / seconds,
        load={name: mesh.sum(counts).tolist() for name, counts in load.items()},
    )


def _of_one(scores: Tensor, labels: Tensor) -> tuple[dict[str, float], list[float]]:
    classes, hits = scores.shape[1], scores.argmax(1) == labels
    best = scores.topk(min(5, classes)).indices
    figures = {
        "top1": hits.float().mean(),
        "top5": (best == labels[:, None]).any(1).float().mean(),
        "calibration_error": binary_calibration_error(scores.softmax(1).amax(1), hits.long()),
        "loss": F.cross_entropy(scores, labels),
    }
    per_class = [hits[labels == number].float().mean().item() for number in range(classes)]
    return {name: value.item() for name, value in figures.items()}, per_class


def _of_several(scores: Tensor, labels: Tensor) -> tuple[dict[str, float], list[float]]:
    probabilities, numbers = scores.sigmoid(), labels.long()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of classes that do not occur
        precision = multilabel_average_precision(probabilities, numbers, num_labels=scores.shape[1], average="none")
    precision = torch.where(labels.any(0), precision, torch.nan)
    figures = {
        "mean_average_precision": precision.nanmean(),
        "exact_match": ((scores > 0) == labels).all(1).float().mean(),
        "calibration_error": binary_calibration_error(probabilities.flatten(), numbers.flatten()),
        "loss": F.binary_cross_entropy_with_logits(scores, labels.float()),
    }
    return {name: value.item() for name, value in figures.items()}, precision.tolist()


def by_group(evaluation: Evaluation, groups: list[str]) -> list[Group]:
    """The accuracy on each group of images, worst first. `groups`: each image's, by name."""
    right, found = evaluation.right.tolist(), []
    for name in sorted(set(groups)):
        hits = [hit for hit, group in zip(right, groups, strict=True) if group == name]
        interval = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
        found.append(Group(name, len(hits), sum(hits) / len(hits), float(interval.low), float(interval.high)))
    return sorted(found, key=lambda group: group.accuracy)
