"""What the experts of each layer do on a set of images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vismoe.data import Batch, ImageSet
from vismoe.inference import Predictor
from vismoe.moe.record import layers_of

from .gallery import Gallery
from .tokens import LayerTokens, tokens_of
from .trace import data_uri

SHUFFLES, SEED = 20, 0
"""Number of shuffles of a control, and their seed."""
BACKGROUND = "background"
"""Class of the patches that no labelled box contains."""
Watch = Callable[[int, int], None]
"""Function that is called with the number of images done, and of all images."""


@dataclass(frozen=True)
class Information:
    """Mutual information in bits between the expert of a token and something else, and its control.

    - `value`: the mutual information.
    - `shuffled`: the mean over shuffles that keep every count but not the pairing. It is above 0, as few tokens
      happen to be uneven; what is above it is information.
    - `largest_shuffled`: the largest over these shuffles.
    """

    value: float
    shuffled: float
    largest_shuffled: float


@dataclass(frozen=True)
class LayerAnalysis:
    """What the E experts of one sparse layer do on N images of C classes.

    - `name`, `num_experts`, `k`, `grid`: as in `vismoe.explain.LayerTrace`.
    - `load`: number of choices of each expert, before any is dropped.
    - `by_class`: tokens of each class's images that each expert got; of images with boxes, the patches of each class,
      see `SetAnalysis.by_patch`; None for images without classes.
    - `by_position`: tokens of each patch's position that each expert got; tokens before the patches do not count.
    - `by_class_information`, `by_position_information`: mutual information of expert and class, and of expert and
      position; the first is None for images without classes. Labels are shuffled by image, because the tokens of an
      image are not independent; positions, and classes of patches, by token.
    - `gallery`: for each expert, the patches that it takes most surely, as PIL images, surest first, with their gates;
      at most one of an image.
    - `together`: number of patches that go to expert e here and to expert f in the next sparse layer; None for the
      last one, and for another number of patches.
    """

    name: str
    num_experts: int
    k: int
    grid: tuple[int, int]
    load: Int[Tensor, " E"]
    by_class: Int[Tensor, "E C"] | None
    by_position: Int[Tensor, "E rows columns"]
    by_class_information: Information | None
    by_position_information: Information
    gallery: list[list[tuple[Any, float]]]
    together: Int[Tensor, "E F"] | None

    @property
    def dead(self) -> list[int]:
        """The experts that no token of these images chose."""
        return [expert for expert, count in enumerate(self.load.tolist()) if not count]

    def to_json(self) -> dict[str, Any]:
        """The analysis for JSON; images of the gallery as data URIs."""
        of_class, of_position = self.by_class_information, self.by_position_information
        return {
            "name": self.name,
            "experts": self.num_experts,
            "k": self.k,
            "grid": list(self.grid),
            "load": self.load.tolist(),
            "by_class": None if self.by_class is None else self.by_class.tolist(),
            "by_position": self.by_position.tolist(),
            "mutual_information": {
                "class": None if of_class is None else of_class.value,
                "class_shuffled": None if of_class is None else of_class.shuffled,
                "position": of_position.value,
                "position_shuffled": of_position.shuffled,
            },
            "dead": self.dead,
            "gallery": [[data_uri(image) for image, _ in images] for images in self.gallery],
            "together": None if self.together is None else self.together.tolist(),
        }


@dataclass(frozen=True)
class SetAnalysis:
    """What the experts of a network do on a set of images.

    - `images`: number of images.
    - `classes`: names of the classes; empty for images without classes.
    - `layers`: the sparse layers, in order; empty for a dense network.
    - `by_patch`: whether classes are counted patch by patch, as for a detector's images: the class of a patch is that
      of the labelled box that contains its centre (of several, the smallest), otherwise "background", the last of
      `classes`. False: each token has the class of its image.
    """

    images: int
    classes: list[str]
    layers: list[LayerAnalysis]
    by_patch: bool = False

    def to_json(self) -> dict[str, Any]:
        """The analysis for JSON."""
        return {
            "images": self.images,
            "classes": self.classes,
            "by_patch": self.by_patch,
            "layers": [layer.to_json() for layer in self.layers],
        }


def analyse_set(
    predictor: Predictor,
    images: ImageSet,
    classes: Sequence[str] = (),
    workers: int = 0,
    seed: int = SEED,
    watch: Watch | None = None,
) -> SetAnalysis:
    """Runs a network once on a set of images, and counts what its experts did. No token is stored.

    **Arguments:**

    - `predictor`: the network.
    - `images`: the images. One with several classes counts for each of them; of one with boxes, each patch has the
      class of its box.
    - `classes`: names of the C classes, in the order of the labels; default: the images have none.
    - `workers`: number of processes that prepare images; default 0: this process.
    - `seed`: of the shuffled controls; default 0.
    - `watch`: called after each batch; default None.

    **Raises:** ValueError if there are no images, for a label that is no number of a class, and for tokens that are not
    a grid of patches.
    """
    if not len(images):
        raise ValueError("there are no images to analyse")
    classes, labels = list(classes), _one_hot(images.labels, len(classes))
    if not layers_of(predictor.model):
        return SetAnalysis(len(images), classes, [])
    counts: list[_Counts] = []
    by_patch = False
    for output in predictor.outputs(images, workers):
        tokens = tokens_of(predictor.model, output.routing, len(output.places))
        loads = [call.load.cpu() for calls in output.routing.layers.values() for call in calls]
        counts = counts or [_Counts.of(layer) for layer in tokens]
        pixels = output.batch["image"]
        by_patch = bool(classes) and "boxes" in output.batch
        for number, (layer, load) in enumerate(zip(tokens, loads, strict=True)):
            counts[number].update(layer, load, tokens[number + 1] if number + 1 < len(tokens) else None)
            counts[number].gallery.update(layer, pixels)
            if by_patch:
                counts[number].update_classes(layer, output.batch, len(classes))
        if watch is not None:
            watch(int(output.places[-1]) + 1, len(images))
    generator = np.random.default_rng(seed)
    layers = [each.analysis(predictor, labels, generator) for each in counts]
    return SetAnalysis(len(images), [*classes, BACKGROUND] if by_patch else classes, layers, by_patch)


def mutual_information(table: Float[Tensor, "E C"] | Int[Tensor, "E C"]) -> float:
    """Mutual information in bits of the row and the column of a count."""
    joint = table.double() / table.sum().clamp_min(1)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    live = joint > 0
    return float((joint[live] * (joint[live] / independent[live]).log2()).sum())


@dataclass
class _Counts:
    """What is counted of one layer, batch by batch. `per_image`: the tokens of each image that each expert got;
    `of_patches`: the patches of each class, if images have boxes."""

    name: str
    num_experts: int
    k: int
    grid: tuple[int, int]
    gallery: Gallery
    load: Tensor
    by_position: Tensor
    together: Tensor | None = None
    per_image: list[Int[Tensor, "B E"]] = field(default_factory=list)
    of_patches: Tensor | None = None

    @staticmethod
    def of(layer: LayerTokens) -> "_Counts":
        experts = layer.num_experts
        zeros = torch.zeros(experts, dtype=torch.int64)
        by_position = torch.zeros(experts, *layer.grid, dtype=torch.int64)
        return _Counts(layer.name, experts, layer.expert.shape[2], layer.grid, Gallery(experts), zeros, by_position)

    def update(self, layer: LayerTokens, load: Tensor, following: LayerTokens | None) -> None:
        chosen = layer.chosen()
        patches = chosen[:, layer.prefix :]
        self.load = self.load + load
        self.by_position += patches.sum(0).T.unflatten(1, layer.grid)
        self.per_image.append(chosen.sum(1))
        if following is not None and following.grid == layer.grid:
            later = following.chosen()[:, following.prefix :]
            # Products of floats: exact up to 2²⁴ patches of a batch, and many times faster than of integers.
            pairs = patches.flatten(0, 1).float().T @ later.flatten(0, 1).float()
            self.together = pairs.long() if self.together is None else self.together + pairs.long()

    def update_classes(self, layer: LayerTokens, batch: Batch, classes: int) -> None:
        height, width = batch["image"].shape[-2:]
        of_patch = torch.stack(
            [
                _classes_of_patches(layer.grid, (height, width), torch.as_tensor(boxes), numbers, classes)
                for boxes, numbers in zip(batch["boxes"], batch["classes"], strict=True)
            ]
        )
        chosen = layer.chosen()[:, layer.prefix :]  # padding is not routed, so no expert chose it
        pairs = chosen.flatten(0, 1).T.float() @ torch.nn.functional.one_hot(of_patch.flatten(), classes + 1).float()
        self.of_patches = pairs.long() if self.of_patches is None else self.of_patches + pairs.long()

    def analysis(
        self, predictor: Predictor, labels: Bool[Tensor, "N C"] | None, generator: np.random.Generator
    ) -> LayerAnalysis:
        per_image = torch.cat(self.per_image)
        by_class: Tensor | None
        information: Information | None
        if self.of_patches is not None:
            by_class, information = self.of_patches, _of_tokens(self.of_patches, generator)
        elif labels is not None:
            by_class = (per_image.double().T @ labels.double()).long()
            information = _of_class(per_image, labels, generator)
        else:
            by_class, information = None, None
        return LayerAnalysis(
            name=self.name,
            num_experts=self.num_experts,
            k=self.k,
            grid=self.grid,
            load=self.load,
            by_class=by_class,
            by_position=self.by_position,
            by_class_information=information,
            by_position_information=_of_tokens(self.by_position.flatten(1), generator),
            gallery=self.gallery.images(predictor),
            together=self.together,
        )


def _one_hot(labels: Tensor, classes: int) -> Bool[Tensor, "N C"] | None:
    """Which classes each image shows; None for images without classes."""
    if not classes or (labels.ndim == 2 and not labels.shape[1]):
        return None
    if labels.ndim == 1 and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        given = f"labels from {int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"{given} for {classes} classes: expected numbers of classes, 0 to {classes - 1}")
    if labels.ndim == 2 and labels.shape[1] != classes:
        raise ValueError(f"labels of {labels.shape[1]} classes, but {classes} names of classes: give one name for each")
    return labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels, classes).bool()


def _of_class(per_image: Tensor, labels: Tensor, generator: np.random.Generator) -> Information:
    counts, classes = per_image.double().T, labels.double()
    shuffled = [
        mutual_information(counts @ classes[torch.from_numpy(generator.permutation(len(classes)))])
        for _ in range(SHUFFLES)
    ]
    return Information(mutual_information(counts @ classes), float(np.mean(shuffled)), max(shuffled))


def _classes_of_patches(
    grid: tuple[int, int], size: tuple[int, int], boxes: Tensor, numbers: Tensor, background: int
) -> Int[Tensor, " patches"]:
    """The class of the labelled box (left, top, right, bottom, in pixels of the input) that contains a patch's centre;
    of several boxes the smallest."""
    (rows, columns), (height, width) = grid, size
    y, x = (torch.arange(rows) + 0.5) * height / rows, (torch.arange(columns) + 0.5) * width / columns
    found = torch.full((rows, columns), background)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for number in area.argsort(descending=True).tolist():
        left, top, right, bottom = boxes[number].tolist()
        found[((y >= top) & (y <= bottom))[:, None] & (x >= left) & (x <= right)] = int(numbers[number])
    return found.flatten()


def _of_tokens(table: Tensor, generator: np.random.Generator) -> Information:
    """Random tables with the same sums of rows and columns are what shuffling the tokens' positions (or classes)
    gives."""
    if not table.sum():
        return Information(0.0, 0.0, 0.0)
    from scipy.stats import random_table  # its import takes a second

    live = table[table.sum(1) > 0][:, table.sum(0) > 0]
    tables = random_table(live.sum(1).numpy(), live.sum(0).numpy()).rvs(SHUFFLES, random_state=generator)
    shuffled = [mutual_information(torch.from_numpy(np.asarray(each))) for each in tables]
    return Information(mutual_information(table), float(np.mean(shuffled)), max(shuffled))
