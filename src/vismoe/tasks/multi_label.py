"""Classification with several classes per image, or none."""

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from vismoe.data import Batch, ImageSet
from vismoe.weights import MULTI_LABEL

from .classification import sigmoid_loss
from .labels import Labels, by_row


class MultiLabel(Labels):
    """Classification with several classes per image. The loss is binary cross-entropy, averaged over classes.

    Metrics; all except `loss` are in 0…1:

    - `mean_average_precision`: mean over the classes that occur, the primary metric.
    - `exact_match`: fraction of images whose predictions are right for every class, with threshold 0.5.
    - `calibration_error`: over all pairs of image and class, with 15 bins of probability.
    - `loss`: mean binary cross-entropy.
    """

    name = MULTI_LABEL
    metric, metric_title = "mean_average_precision", "mean average precision"
    probability = "sigmoid"

    @property
    def problem_type(self) -> str | None:
        return self.name

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        weight = self.class_weights_on(outputs.device)
        loss = sigmoid_loss(outputs, by_row(batch["target"], outputs), self.label_smoothing, weight)
        return loss * outputs.shape[1] if self.loss_kind == "sigmoid" else loss

    def answers(self, logits: Tensor) -> Tensor:
        return logits > 0

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def metrics_of(self, scores: Tensor, labels: Tensor) -> tuple[dict[str, float], list[float]]:
        # Its import takes a second.
        from torchmetrics.functional.classification import binary_calibration_error, multilabel_average_precision

        probabilities, numbers = scores.sigmoid(), labels.long()
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # for classes that do not occur
            precision = multilabel_average_precision(probabilities, numbers, num_labels=scores.shape[1], average="none")
        precision = torch.where(labels.any(0), precision, torch.nan)
        metrics = {
            "mean_average_precision": precision.nanmean(),
            "exact_match": ((scores > 0) == labels).all(1).float().mean(),
            "calibration_error": binary_calibration_error(probabilities.flatten(), numbers.flatten()),
            "loss": F.binary_cross_entropy_with_logits(scores, labels.float()),
        }
        return {name: value.item() for name, value in metrics.items()}, precision.tolist()

    def check_extra_eval(self, name: str, images: ImageSet) -> None:
        if images.labels.shape[1:] != (len(self.classes),):
            expected = f"expected {('N', len(self.classes))}"
            raise ValueError(f"extra_eval[{name!r}] has labels of shape {tuple(images.labels.shape)}: {expected}")
