"""From a detector's outputs to boxes."""

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


def candidates(
    outputs: Outputs,
) -> tuple[Float[Tensor, "B M 4"], Float[Tensor, "B M"], Int[Tensor, "B M"]]:
    """The boxes with the highest scores, M of each image, before boxes of the same object are removed.

    The score is the geometric mean of the probability of a centre and of the box's expected IoU. Only cells whose
    centre probability is the largest among their neighbours are taken.

    **Arguments:**

    - `outputs`: outputs of the head.

    **Returns:** boxes in pixels, scores in descending order, and labels.
    """
    centres = outputs.centres.sigmoid()
    if outputs.inside is not None:
        centres = torch.where(outputs.inside[:, None], centres, 0)
    is_peak = F.max_pool2d(centres, 3, 1, 1) == centres
    scores = torch.where(is_peak, (centres * outputs.quality.sigmoid()).sqrt(), 0)
    classes, height, width = scores.shape[1:]
    best, places = scores.flatten(1).topk(min(CANDIDATES, classes * height * width), 1)
    labels = places // (height * width)
    cells = (places % (height * width))[:, None].expand(-1, 4, -1)
    return outputs.boxes.flatten(2).gather(2, cells).mT, best, labels


def select(boxes: Float[Tensor, "M 4"], scores: Float[Tensor, " M"], labels: Int[Tensor, " M"]) -> Detections:
    """The objects of one image: of overlapping boxes of one class only the one with the highest score is kept.

    **Arguments:**

    - `boxes`, `scores`, `labels`: candidates by descending score.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for label in labels.unique().tolist():
        places = ((labels == label) & (scores >= LOWEST)).nonzero()[:, 0]
        kept[places[nms(boxes[places], scores[places], OVERLAP)]] = True
    chosen = kept.nonzero()[:MOST, 0]
    return Detections(boxes[chosen], scores[chosen], labels[chosen])


def decode(outputs: Outputs) -> list[Detections]:
    """The objects of each image of a batch, in pixels of the input.

    **Arguments:**

    - `outputs`: outputs of a detector.
    """
    return [select(*image) for image in zip(*candidates(outputs), strict=True)]
