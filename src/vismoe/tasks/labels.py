"""Base of both classification tasks: classes, predictions and evaluation."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vismoe.data import Batch, Data, ImageSet
from vismoe.vit import mean_of_images
from vismoe.weights import MULTI_LABEL, data_config, save

from .base import Evaluation, Prediction, Scorer, Sum, Task
from .chance import weakness_of_one_label, weakness_of_several_labels
from .mixing import mix


@dataclass(frozen=True)
class ClassEvaluation(Evaluation):
    """The evaluation of a classifier on N images.

    - `classes`: names of the K classes.
    - `per_class`: (K,), accuracy on the images of each class; with several labels per image, the average precision of
      each class. NaN for a class without images.
    - `labels`: class numbers (N,), or which classes each image shows (N, K).
    - `scores`: (N, K), logits.
    """

    classes: Sequence[str]
    per_class: list[float]
    labels: Tensor
    scores: Tensor

    @property
    def right(self) -> Tensor:
        """(N,), whether the prediction for each image is right; with several labels per image, right for every
        class."""
        if self.labels.ndim == 2:
            return ((self.scores > 0) == self.labels).all(1)
        return self.scores.argmax(1) == self.labels

    @property
    def weakness(self) -> str | None:
        find = weakness_of_one_label if self.labels.ndim == 1 else weakness_of_several_labels
        return find(self.labels, self.scores, self.classes)

    def details(self) -> dict[str, Any]:
        return {"per_class": dict(zip(self.classes, self.per_class, strict=True))}

    def lines(self) -> list[str]:
        title = "top-1" if self.labels.ndim == 1 else "average precision"
        pairs = zip(self.per_class, self.classes, strict=True)
        worst_first = sorted((share, name) for share, name in pairs if not math.isnan(share))
        return [f"{title} by class, worst first: {', '.join(f'{name} {share:.4f}' for share, name in worst_first)}"]


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval of the fraction `right` ÷ `total` (Wilson)."""
    from scipy.stats import binomtest  # its import takes a second

    interval = binomtest(right, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """The most probable classes of one image, in descending order.

    - `image`: path or title of the image.
    - `classes`: pairs of a class name and its probability. Over all classes the probabilities sum to 1, except if an
      image may show several classes.
    """

    image: str
    classes: list[tuple[str, float]]

    @property
    def names(self) -> list[str]:
        """The names of the classes."""
        return [name for name, _ in self.classes]

    @property
    def probabilities(self) -> list[float]:
        """The probabilities of the classes."""
        return [probability for _, probability in self.classes]

    def to_json(self) -> dict[str, Any]:
        return {"image": self.image, "classes": [{"name": name, "probability": p} for name, p in self.classes]}

    def columns(self) -> dict[str, Any]:
        ranked = enumerate(self.classes, start=1)
        pairs = [((f"class{rank}", name), (f"probability{rank}", value)) for rank, (name, value) in ranked]
        return {"image": self.image} | dict(cell for pair in pairs for cell in pair)

    def cells(self) -> dict[str, str]:
        ranked = enumerate(self.classes, start=1)
        return {"image": self.image} | {f"{rank}.": f"{name} {value:.3f}" for rank, (name, value) in ranked}


class Labels(Task):
    """Base of both classification tasks.

    **Arguments:**

    - `classes`: names of the K classes, in the order of the network's outputs.
    - `loss_kind`: "auto": the default loss of the task; "sigmoid": binary cross-entropy summed over classes. Default
      "auto".
    - `label_smoothing`: fraction of the target that is spread evenly over all classes; default 0.
    - `class_weights`: (K,), weight of each class in the loss; default None: equal weights.
    - `mixup`: alpha of mixup; default 0: no mixup.
    - `cutmix`: alpha of CutMix; default 0: no CutMix.
    - `named`: whether `classes` are the real names, not just numbers; default True.
    """

    training_metric = "accuracy"
    probability: Literal["softmax", "sigmoid"]

    def __init__(
        self,
        classes: Sequence[str],
        loss_kind: Literal["auto", "sigmoid"] = "auto",
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        named: bool = True,
    ):
        self.classes, self.loss_kind, self.label_smoothing = list(classes), loss_kind, label_smoothing
        self.class_weights, self.mixup, self.cutmix, self.named = class_weights, mixup, cutmix, named

    @classmethod
    def of_training(cls, data: Data, settings: Mapping[str, Any]) -> "Labels":
        return cls(
            data.classes,
            settings["loss"],
            settings["label_smoothing"],
            data.class_weights(settings["class_weights"]),
            settings["mixup"],
            settings["cutmix"],
        )

    @classmethod
    def of_model(cls, model: nn.Module) -> "Labels":
        return cls(label_names(model), named=known_names(model) is not None)

    def check(self, data: Data) -> None:
        if data.has_boxes:
            raise ValueError(f"task={self.name}: {data.name} has boxes; accepted are auto, object-detection")
        if len(data.classes) < 2:
            raise ValueError(f"{data.name} has one class, {data.classes[0]}: a classifier needs at least two")
        if data.multi_label != (self.probability == "sigmoid"):
            labels = "several labels" if data.multi_label else "one label"
            fitting = MULTI_LABEL if data.multi_label else "classification"
            raise ValueError(f"task={self.name}: {data.name} has {labels} per image; accepted are auto, {fitting}")

    def check_model(self, model: nn.Module) -> None:
        if getattr(model, "num_classes", 1) < 1:
            raise ValueError("this model has no classes (num_classes=0): it returns features, not predictions")

    def network_options(self, data: Data) -> dict[str, Any]:
        return super().network_options(data) | {"num_classes": len(self.classes)}

    def prepare(self, batch: Batch, seed: int) -> Batch:
        images, labels = batch["image"], batch["label"]
        mixed, targets = mix(images, labels, len(self.classes), self.mixup, self.cutmix, seed)
        return batch | {"image": mixed, "target": targets}

    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = network(batch["image"])
        if logits.ndim != 2:
            raise ValueError(
                f"this model returns values of shape {tuple(logits.shape[1:])} for an image, not one for each class"
            )
        return logits.float()

    def class_weights_on(self, device: torch.device) -> Tensor | None:
        """The class weights on a device. They are copied only once, because the copy waits for the device."""
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(device)
        return self.class_weights

    def training_score(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (self.answers(outputs) == by_row(batch["label"], outputs)).float().mean()

    @abstractmethod
    def answers(self, logits: Tensor) -> Tensor:
        """The predictions for logits (B, K), in the form of labels."""

    @abstractmethod
    def metrics_of(self, scores: Tensor, labels: Tensor) -> tuple[dict[str, float], list[float]]:
        """The metrics for logits (N, K), and (K,) the accuracy or average precision of each class."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """The probabilities (B, K) for logits (B, K)."""

    def scorer(self, images: ImageSet) -> "ScoreTable":
        if "boxes" in images.further:
            raise ValueError("the images have boxes: expected images with classes alone, or a detector")
        return ScoreTable(self, images)

    def predictions(self, outputs: Tensor, titles: Sequence[str], topk: int) -> list[Prediction]:
        logits = mean_of_images(outputs, len(titles), self.probability)
        probabilities = self.probabilities(logits).cpu()
        best = probabilities.topk(min(topk, probabilities.shape[1]))
        return [
            ClassPrediction(title, [(self.classes[i], value) for i, value in zip(numbers, values, strict=True)])
            for title, values, numbers in zip(titles, best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def save(self, model: nn.Module, path: Path) -> None:
        save(model, path, self.classes, data_config(model), self.problem_type)

    @property
    def problem_type(self) -> str | None:
        """The name of the task in a model folder, as in transformers; None for one class per image."""
        return None

    def align_classes(self, data: Data) -> Data:
        """Renumbers the labels to match the network's classes, by name. The data set may lack some of these classes. If
        the network has no class names, a data set with the same number of classes is returned unchanged.

        **Raises:** ValueError if the data set has boxes or classes that the network lacks, or only one of the two has
        several labels per image.
        """
        if data.has_boxes:
            raise ValueError(
                f"the model is a classifier, but {data.name} has boxes: name a folder without annotations of boxes, or "
                "a detector (vismoe finetune trains one)"
            )
        if not self.named and len(data.classes) == len(self.classes):
            return data
        multi_label = self.probability == "sigmoid"
        if self.named and multi_label != data.multi_label:
            trained, given = ("several classes" if each else "one class" for each in (multi_label, data.multi_label))
            raise ValueError(
                f"the model was trained on images with {trained} each, but {data.name} has {given} per image"
            )
        return data.align_classes(self.classes)


class ScoreTable(Scorer):
    """Collects the logits of all images, (N, K). Summing over processes and evaluating needs twice that memory."""

    def __init__(self, task: Labels, images: ImageSet):
        self.task, self.images, self.scores = task, images, torch.empty(0)

    def update(self, places: Tensor, outputs: Tensor, batch: Batch) -> None:
        rows = mean_of_images(outputs.cpu(), len(places), self.task.probability)
        if not self.scores.numel():
            self.scores = torch.zeros(len(self.images), rows.shape[1])
        self.scores[places] = rows

    def evaluation(self, total: Sum, images_per_second: float, load: dict[str, list[int]]) -> ClassEvaluation:
        scores, labels = total(self.scores), self.images.labels
        metrics, per_class = self.task.metrics_of(scores, labels)
        classes = self.task.classes or [str(number) for number in range(scores.shape[1])]
        return ClassEvaluation(metrics, images_per_second, load, classes, per_class, labels, scores)


def by_row(labels: Tensor, logits: Tensor) -> Tensor:
    """Repeats the labels if an ensemble has several rows of logits for each image, one for each member."""
    return labels if len(labels) == len(logits) else labels.repeat_interleave(len(logits) // len(labels), 0)


def label_names(model: nn.Module) -> Sequence[str]:
    """The class names of a network; if it has none, numbers as text; empty if the number of classes is unknown."""
    return known_names(model) or [str(number) for number in range(getattr(model, "num_classes", 0))]


def known_names(model: nn.Module) -> Sequence[str] | None:
    """The class names of a network; None if it has none."""
    names: Sequence[str] | None = getattr(model, "pretrained_cfg", {}).get("label_names")
    return names


def is_multi_label(model: nn.Module) -> bool:
    """Whether a network was trained with several labels per image."""
    return bool(getattr(model, "pretrained_cfg", {}).get("problem_type") == MULTI_LABEL)
