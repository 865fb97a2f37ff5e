"""Classification with one class per image."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vismoe.data import Batch, ImageSet

from .base import Evaluation
from .confusion import draw_confusion
from .labels import ClassEvaluation, Labels, by_row


class Classification(Labels):
    """Classification with one class per image. The loss is softmax cross-entropy.

    Metrics; all except `loss` are in 0…1:

    - `top1`: top-1 accuracy, the primary metric.
    - `top5`: top-5 accuracy; top-k if there are only k < 5 classes.
    - `calibration_error`: mean difference between confidence and accuracy over 15 bins of confidence (Guo et al. 2017).
    - `loss`: mean cross-entropy.
    """

    name = "classification"
    metric, metric_title = "top1", "accuracy"
    probability = "softmax"

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        targets = by_row(batch["target"], outputs)
        weight = self.class_weights_on(outputs.device)
        if self.loss_kind == "sigmoid":
            return sigmoid_loss(outputs, targets, self.label_smoothing, weight) * outputs.shape[1]
        return F.cross_entropy(outputs, targets, weight=weight, label_smoothing=self.label_smoothing)

    def answers(self, logits: Tensor) -> Tensor:
        return logits.argmax(1)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def metrics_of(self, scores: Tensor, labels: Tensor) -> tuple[dict[str, float], list[float]]:
        from torchmetrics.functional.classification import binary_calibration_error  # its import takes a second

        classes, hits = scores.shape[1], scores.argmax(1) == labels
        best = scores.topk(min(5, classes)).indices
        metrics = {
            "top1": hits.float().mean(),
            "top5": (best == labels[:, None]).any(1).float().mean(),
            "calibration_error": binary_calibration_error(scores.softmax(1).amax(1), hits.long()),
            "loss": F.cross_entropy(scores, labels),
        }
        per_class = [hits[labels == number].float().mean().item() for number in range(classes)]
        return {name: value.item() for name, value in metrics.items()}, per_class

    def check_extra_eval(self, name: str, images: ImageSet) -> None:
        if images.labels.ndim != 1:
            raise ValueError(f"extra_eval[{name!r}] has labels of shape {tuple(images.labels.shape)}: expected ('N',)")
        least, most = int(images.labels.min()), int(images.labels.max())
        if least < 0 or most >= len(self.classes):
            classes = f"expected class numbers, 0 to {len(self.classes) - 1}"
            raise ValueError(f"extra_eval[{name!r}] has labels {least} to {most}: {classes}")

    def report(self, evaluation: Evaluation, images: ImageSet, folder: Path) -> None:
        assert isinstance(evaluation, ClassEvaluation)
        draw_confusion(evaluation.labels, evaluation.scores.argmax(1), self.classes, folder / "confusion.png")


def sigmoid_loss(logits: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
    """Binary cross-entropy, averaged over images and classes.

    **Arguments:**

    - `logits`: (B, K).
    - `targets`: class numbers (B,), or the target of each class (B, K), in 0…1.
    - `smoothing`: label smoothing, at least 0 and below 1.
    - `weights`: (K,), weight of each class's positive term; None: equal weights.
    """
    classes = logits.shape[1]
    shares = targets if targets.ndim == 2 else F.one_hot(targets, classes)
    smooth = shares * (1 - smoothing) + smoothing / classes
    positive = None if weights is None else weights.to(logits.device)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, smooth, pos_weight=positive)
