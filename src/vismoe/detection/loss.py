"""The loss of a centre-based head."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from .head import Outputs, cell_centres

SPREAD = 0.1
"""Standard deviation of the Gaussian around a centre, as a fraction of the object's side."""
POSITIVE = 0.3
"""Cells with at least this value of the Gaussian learn the object's box; the cell of the centre always does."""
SIDES_WEIGHT, BOX_WEIGHT, QUALITY_WEIGHT = 0.5, 1.0, 0.5


@dataclass(frozen=True)
class Targets:
    """What a head should predict for one image.

    - `centres`: (K, h, w), 1 in the cell of an object's centre, falling off around it.
    - `is_centre`: (K, h, w), whether the cell has an object's centre.
    - `counted`: (h, w), whether cells count in the loss of centres: not in padding, nor in ignored objects.
    - `cells`: (P,), the cells that learn a box, row by row.
    - `boxes`: (P, 4), their boxes.
    - `weights`: (P,), their weights.
    """

    centres: Float[Tensor, "K h w"]
    is_centre: Bool[Tensor, "K h w"]
    counted: Bool[Tensor, "h w"]
    cells: Int[Tensor, " P"]
    boxes: Float[Tensor, "P 4"]
    weights: Float[Tensor, " P"]


def targets(
    boxes: Float[Tensor, "N 4"],
    classes: Int[Tensor, " N"],
    ignored: Bool[Tensor, " N"],
    num_classes: int,
    shape: tuple[int, int],
    stride: tuple[float, float],
    mask: Bool[Tensor, "h w"] | None = None,
) -> Targets:
    """The targets of one image.

    **Arguments:**

    - `boxes`, `classes`: the true objects, in pixels.
    - `ignored`: which of them are neither found nor missed: crowds and difficult ones.
    - `num_classes`: number of classes, K.
    - `shape`: (height, width) of the map in cells.
    - `stride`: (vertical, horizontal) side of a cell in pixels.
    - `mask`: which cells have a pixel of the image; default None: all.
    """
    device = boxes.device
    scale = torch.tensor(stride[::-1] * 2, device=device, dtype=torch.float32)
    inside = cell_centres(*shape, device)
    counted = torch.ones(shape, dtype=torch.bool, device=device) if mask is None else mask.clone()
    in_cells = boxes / scale
    left, top, right, bottom = in_cells[:, :, None, None].unbind(1)
    x, y = inside[None].unbind(1)
    within = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    counted &= ~within[ignored].any(0)
    true, kinds = in_cells[~ignored], classes[~ignored]
    centres = torch.zeros(num_classes, *shape, device=device)
    is_centre = torch.zeros(num_classes, *shape, dtype=torch.bool, device=device)
    if not len(true):
        return Targets(centres, is_centre, counted, kinds.new_empty(0), boxes.new_empty(0, 4), boxes.new_empty(0))
    middle, sides = (true[:, :2] + true[:, 2:]) / 2, _sides(true).clamp_min(1e-3)
    column = middle[:, 0].long().clamp(0, shape[1] - 1)
    row = middle[:, 1].long().clamp(0, shape[0] - 1)
    cell = torch.stack([column, row], 1) + 0.5
    distance = (inside[None] - cell[:, :, None, None]) / (SPREAD * sides)[:, :, None, None]
    gaussians = torch.exp(-0.5 * distance.square().sum(1))
    centres.scatter_reduce_(0, kinds[:, None, None].expand_as(gaussians), gaussians, "amax")
    is_centre[kinds, row, column] = True
    # A cell in several objects learns the box of the nearest centre, relative to the objects' sizes.
    strongest, owner = gaussians.max(0)
    positive = strongest >= POSITIVE
    cells = positive.flatten().nonzero()[:, 0]
    owners = owner.flatten()[cells]
    return Targets(centres, is_centre, counted, cells, true[owners] * scale, strongest.flatten()[cells])


def focal_loss(logits: Tensor, wanted: Targets) -> Tensor:
    """Penalty-reduced focal loss of the centres (Law and Deng 2018, eq. 1), summed over cells and classes."""
    log_found, log_free = F.logsigmoid(logits), F.logsigmoid(-logits)
    found = log_found.exp()
    at_centres = (1 - found).square() * log_found
    elsewhere = (1 - wanted.centres) ** 4 * found.square() * log_free
    losses = torch.where(wanted.is_centre, at_centres, elsewhere)
    return -torch.where(wanted.counted | wanted.is_centre, losses, 0).sum()


def detection_loss(outputs: Outputs, wanted: Sequence[Targets]) -> Tensor:
    """The mean loss of B images. The loss of an image is its mean per object, so it does not depend on the other images
    of a batch, and gradients are the same with gradient accumulation and with several processes.

    **Arguments:**

    - `outputs`: outputs of the head for B images.
    - `wanted`: (B,), the targets of each.
    """
    images = zip(outputs.centres, outputs.quality, outputs.boxes, wanted, strict=True)
    return torch.stack([_loss_of_image(*image, outputs.stride) for image in images]).mean()


def _loss_of_image(
    centres: Float[Tensor, "K h w"],
    quality: Float[Tensor, "1 h w"],
    boxes: Float[Tensor, "4 h w"],
    wanted: Targets,
    stride: tuple[float, float],
) -> Tensor:
    centre_loss = focal_loss(centres, wanted) / wanted.is_centre.sum().clamp_min(1)
    found, expected = boxes.flatten(1).T[wanted.cells], quality.flatten()[wanted.cells]
    shares = wanted.weights / wanted.weights.sum().clamp_min(1e-6)

    def mean(of_cells: Tensor) -> Tensor:
        return (of_cells * shares).sum()

    giou = mean(generalized_box_iou_loss(found, wanted.boxes))
    scale = found.new_tensor(stride[::-1])
    sides, true_sides = ((_sides(boxes) / scale).clamp_min(1e-3).log() for boxes in (found, wanted.boxes))
    side_loss = mean(F.smooth_l1_loss(sides, true_sides, reduction="none").sum(1))
    iou = pairwise_iou(found.detach(), wanted.boxes)
    quality_loss = mean(F.binary_cross_entropy_with_logits(expected, iou, reduction="none"))
    return centre_loss + BOX_WEIGHT * giou + SIDES_WEIGHT * side_loss + QUALITY_WEIGHT * quality_loss


def _sides(boxes: Float[Tensor, "P 4"]) -> Float[Tensor, "P 2"]:
    """Width and height of boxes."""
    return boxes[:, 2:] - boxes[:, :2]


def pairwise_iou(boxes: Float[Tensor, "P 4"], others: Float[Tensor, "P 4"]) -> Float[Tensor, " P"]:
    """The IoU of each box with the box in the same row."""
    low, high = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    shared = (high - low).clamp_min(0).prod(1)
    first, second = (_sides(each).clamp_min(0).prod(1) for each in (boxes, others))
    return shared / (first + second - shared).clamp_min(1e-9)
