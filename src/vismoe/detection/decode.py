"""From a detector's outputs to boxes."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from .detections import Detections
from .head import Outputs

CANDIDATES = 300
"""Number of boxes of an image before boxes of the same object are removed."""
MOST = 100
"""Max number of boxes of an image, as in COCO's evaluation."""
OVERLAP = 0.6
"""Boxes of one class with a larger IoU are taken for the same object; the one with the higher score is kept."""
LOWEST = 0.01
"""Boxes with a lower score are left out."""
NO_LABEL = -1
"""Label of the entries after an image's last object."""


class PaddedDetections(NamedTuple):
    """The objects of B images in tensors of fixed shape, by descending score. After an image's last object, boxes and
    scores are 0 and labels are -1.

    - `boxes`: (B, 100, 4), left, top, right, bottom in pixels of the input.
    - `scores`: (B, 100), confidence of each box, 0 to 1.
    - `labels`: (B, 100), class number of each box.
    """

    boxes: Float[Tensor, "B N 4"]
    scores: Float[Tensor, "B N"]
    labels: Int[Tensor, "B N"]


def candidates(
    outputs: Outputs,
) -> tuple[Float[Tensor, "B M 4"], Float[Tensor, "B M"], Int[Tensor, "B M"]]:
    """The boxes with the highest scores, M of each image, before boxes of the same object are removed.

    **Arguments:**

    - `outputs`: outputs of the head.

    **Returns:** boxes in pixels, scores in descending order, and labels.
    """
    scores = peak_scores(outputs)
    classes, height, width = scores.shape[1:]
    best, places = scores.flatten(1).topk(min(CANDIDATES, classes * height * width), 1)
    labels = places // (height * width)
    cells = (places % (height * width))[:, None].expand(-1, 4, -1)
    return outputs.boxes.flatten(2).gather(2, cells).mT, best, labels


def centre_probabilities(outputs: Outputs) -> Float[Tensor, "B K h w"]:
    """For each class the probability that an object's centre is in the cell; 0 in padding."""
    centres = outputs.centres.sigmoid()
    return centres if outputs.inside is None else torch.where(outputs.inside[:, None], centres, 0)


def peak_scores(outputs: Outputs) -> Float[Tensor, "B K h w"]:
    """The score of each cell's box: the geometric mean of the probability of a centre and of the box's expected IoU. It
    is 0 where a neighbour has a larger centre probability."""
    centres = centre_probabilities(outputs)
    is_peak = F.max_pool2d(centres, 3, 1, 1) == centres
    return torch.where(is_peak, (centres * outputs.quality.sigmoid()).sqrt(), 0)


# A custom operator, which an exported graph replaces by one NonMaxSuppression.
@torch.library.custom_op("vismoe::keep_best", mutates_args=())
def keep_best(boxes: Tensor, scores: Tensor) -> Tensor:
    """Of overlapping boxes of one class only the one with the highest score is kept.

    **Arguments:**

    - `boxes`: (B, M, 4), the candidates.
    - `scores`: (B, K, M), the score of each candidate in its own class, -1 in all others.

    **Returns:** (B, M) bool, whether a candidate is kept.
    """
    kept = torch.zeros_like(scores[:, 0], dtype=torch.bool)
    for image, kind in (scores >= 0).any(2).nonzero().tolist():
        places = (scores[image, kind] >= 0).nonzero()[:, 0]
        kept[image, places[nms(boxes[image, places], scores[image, kind, places], OVERLAP)]] = True
    return kept


@keep_best.register_fake
def _(boxes: Tensor, scores: Tensor) -> Tensor:
    return torch.empty_like(scores[:, 0], dtype=torch.bool)


def kept_candidates(
    boxes: Float[Tensor, "B M 4"], scores: Float[Tensor, "B M"], labels: Int[Tensor, "B M"], num_classes: int
) -> Tensor:
    """(B, M) bool, the candidates with a score above the lowest that overlap no better one of their class.

    **Arguments:**

    - `boxes`, `scores`, `labels`: as `candidates` returns them.
    - `num_classes`: number of classes.
    """
    in_class = labels[:, None] == torch.arange(num_classes, device=labels.device)[:, None]
    kept: Tensor = keep_best(boxes, torch.where(in_class & (scores >= LOWEST)[:, None], scores[:, None], -1))
    return kept


def decode_padded(outputs: Outputs) -> PaddedDetections:
    """The objects of each image of a batch in tensors of fixed shape.

    **Arguments:**

    - `outputs`: outputs of a detector.
    """
    boxes, scores, labels = candidates(outputs)
    kept = kept_candidates(boxes, scores, labels, outputs.centres.shape[1])
    number = scores.shape[1]
    # The kept ones first, in their order: all keys but 0 differ, so no choice depends on the order of equal ones.
    keys = torch.where(kept, torch.arange(number, 0, -1, device=scores.device, dtype=torch.float32), 0)
    chosen = keys.topk(min(MOST, number), 1)
    order, is_object = chosen.indices, chosen.values > 0
    padded = PaddedDetections(
        torch.where(is_object[..., None], boxes.gather(1, order[..., None].expand(-1, -1, 4)), 0),
        torch.where(is_object, scores.gather(1, order), 0),
        torch.where(is_object, labels.gather(1, order), NO_LABEL),
    )
    missing = MOST - min(MOST, number)
    if not missing:
        return padded
    return PaddedDetections(
        F.pad(padded.boxes, (0, 0, 0, missing)),
        F.pad(padded.scores, (0, missing)),
        F.pad(padded.labels, (0, missing), value=NO_LABEL),
    )


def decode(outputs: Outputs | tuple[Tensor, ...]) -> list[Detections]:
    """The objects of each image of a batch, in pixels of the input.

    **Arguments:**

    - `outputs`: outputs of a detector; or boxes, scores and labels as `PaddedDetections` has them, which an exported
      detector returns.
    """
    padded = decode_padded(outputs) if isinstance(outputs, Outputs) else PaddedDetections(*outputs)
    numbers = (padded.labels != NO_LABEL).sum(1).tolist()
    return [
        Detections(boxes[:number], scores[:number], labels[:number])
        for number, boxes, scores, labels in zip(numbers, *padded, strict=True)
    ]
