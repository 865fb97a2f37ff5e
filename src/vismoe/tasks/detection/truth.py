"""The true boxes of the images of a set."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vismoe.data import ImageSet


@dataclass(frozen=True)
class TrueBoxes:
    """The N true boxes of one image.

    - `boxes`: (N, 4), left, top, right, bottom in pixels of the image.
    - `labels`: (N,), class number of each box.
    - `ignored`: (N,), whether a box does not have to be found and detections of it are no errors: COCO's crowds, VOC's
      difficult objects.
    """

    boxes: Float[Tensor, "N 4"]
    labels: Int[Tensor, " N"]
    ignored: Bool[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.labels)


def true_boxes(images: ImageSet, index: int) -> TrueBoxes:
    """The true boxes of the image `index` of a set with boxes."""
    boxes, labels, ignored = (images.further[name](index) for name in ("boxes", "classes", "ignored"))
    return TrueBoxes(boxes.as_subclass(torch.Tensor).float(), labels, ignored)
