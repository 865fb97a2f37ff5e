"""Detection: which objects an image shows, and where."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from vismoe.data import (
    Batch,
    Data,
    ImageSet,
    Sample,
    Transform,
    box_evaluation_transform,
    box_training_transform,
    collate_boxes,
)
from vismoe.detection import PROBLEM_TYPE, Detections, Detector, Outputs, decode, detection_loss, make_detector, targets
from vismoe.moe.record import unwrap
from vismoe.weights import data_config, save

from ..base import Evaluation, Prediction, Task
from ..labels import label_names
from .evaluation import BoxEvaluation, BoxScorer
from .predictions import box_predictions
from .report import write_report

TOKENS, BLOCK = "tokens", "block"
"""Names of the values of a sample that stand for the network's first blocks: the tokens before a block, and its number
(see `Detector.tokens_before`)."""


class Detection(Task):
    """Detection of objects: a box, a class and a score for each.

    The primary metric is COCO's average precision, `map`.

    **Arguments:**

    - `classes`: names of the K classes, in the order of the network's outputs.
    """

    name = PROBLEM_TYPE
    metric, metric_title = "map", "mAP"
    unused_settings: ClassVar[Mapping[str, Any]] = {
        "degrees": 0.0,  # boxes would no longer be tight around their objects
        "shear": 0.0,
        "label_smoothing": 0.0,
        "class_weights": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "loss": "auto",
    }
    largest_batch = 16  # larger ones are not faster, and need 10 to 20 MB for each image
    collate = staticmethod(collate_boxes)

    def __init__(self, classes: Sequence[str]):
        self.classes = list(classes)

    @classmethod
    def of_training(cls, data: Data, settings: Mapping[str, Any]) -> "Detection":
        return cls(data.classes)

    @classmethod
    def of_model(cls, model: nn.Module) -> "Detection":
        return cls(label_names(model))

    def check(self, data: Data) -> None:
        if not data.has_boxes:
            raise ValueError(f"task={self.name}: {data.name} has no boxes; accepted are auto, classification")

    def check_extra_eval(self, name: str, images: ImageSet) -> None:
        if "boxes" not in images.further:
            raise ValueError(f"extra_eval[{name!r}] has no boxes: expected images with boxes")

    def align_classes(self, data: Data) -> Data:
        if not data.has_boxes:
            raise ValueError(f"the model finds objects, but {data.name} has no boxes: name a folder with boxes")
        return data.align_classes(self.classes)

    def check_model(self, model: nn.Module) -> None:
        if (
            not isinstance(unwrap(model), Detector)
            and getattr(model, "pretrained_cfg", {}).get("problem_type") != self.name
        ):
            raise ValueError(f"this model is a {type(model).__name__}, which finds no objects: expected a detector")

    def training_transform(self, config: dict[str, Any], augmentation: Mapping[str, float]) -> Transform:
        return partial(_unless_prepared, box_training_transform(config, **augmentation))

    def evaluation_transform(self, config: dict[str, Any]) -> Transform:
        return partial(_unless_prepared, box_evaluation_transform(config))

    def network_options(self, data: Data) -> dict[str, Any]:
        return super().network_options(data) | {"num_classes": 0}

    def network(self, model: nn.Module) -> nn.Module:
        """A detector with this network as its trunk."""
        height, width = data_config(model)["input_size"][1:]
        return make_detector(model, len(self.classes), (height, width))

    def forward(self, network: nn.Module, batch: Batch) -> Outputs | list[Detections]:
        """In training the outputs for the loss, otherwise the objects in pixels of the original images."""
        mask = batch["mask"]
        if mask.device.type == "cpu" and bool(mask.all()):  # attention without a mask is faster
            mask = None
        kept = (batch[TOKENS], int(batch[BLOCK][0])) if TOKENS in batch else ()
        outputs = network(batch["image"], mask, *kept)
        if network.training:
            return cast(Outputs, outputs)
        found = decode(outputs) if isinstance(outputs, tuple) else outputs
        return [
            in_original(each, size, scale)
            for each, size, scale in zip(found, batch["size"], batch["scale"], strict=True)
        ]

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        shape = outputs.centres.shape[-2:]
        wanted = [
            targets(
                boxes.as_subclass(Tensor).to(outputs.boxes.device),
                classes.to(outputs.boxes.device),
                ignored.to(outputs.boxes.device),
                outputs.centres.shape[1],
                (shape[0], shape[1]),
                outputs.stride,
                None if outputs.inside is None else outputs.inside[number],
            )
            for number, (boxes, classes, ignored) in enumerate(
                zip(batch["boxes"], batch["classes"], batch["ignored"], strict=True)
            )
        ]
        return detection_loss(outputs, wanted)

    def scorer(self, images: ImageSet) -> BoxScorer:
        if "boxes" not in images.further:
            raise ValueError("the images have no boxes: expected a data set with boxes, or a classifier")
        return BoxScorer(self.classes, images)

    def predictions(self, outputs: list[Detections], titles: Sequence[str], topk: int) -> list[Prediction]:
        return box_predictions(outputs, titles, self.classes)

    def report(self, evaluation: Evaluation, images: ImageSet, folder: Path) -> None:
        assert isinstance(evaluation, BoxEvaluation)
        write_report(evaluation, images, folder)

    def save(self, model: nn.Module, path: Path) -> None:
        save(model, path, self.classes, data_config(model), self.name)


def in_original(found: Detections, size: Tensor, scale: Tensor) -> Detections:
    """Objects in pixels of the original image, clipped to it; those outside are left out.

    **Arguments:**

    - `found`: objects in pixels of the network's input.
    - `size`: (2,), height and width of the original image.
    - `scale`: (2,), pixels of the input per pixel of the original image, vertical and horizontal.
    """
    boxes = found.boxes / scale.flip(0).repeat(2).to(found.boxes.device)
    limits = size.flip(0).repeat(2).to(boxes.device, boxes.dtype)
    boxes = torch.minimum(boxes.clamp_min(0), limits)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    height, width = size.tolist()
    return Detections(boxes[kept], found.scores[kept], found.labels[kept], (height, width))


def _unless_prepared(transform: Transform, sample: Sample) -> Sample:
    """Transforms a sample, unless it has the tokens of an image that was transformed before."""
    return sample if TOKENS in sample else transform(sample)
