"""A centre-based head (Zhou et al. 2019, *Objects as Points*): each object is found at the cell of its centre."""

import math
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple  # under no public name

PRIOR = 0.02
"""Score of every class in every cell before training: most cells have no object (Lin et al. 2017, section 4.1)."""
SIDE = 4
"""Sides of boxes before training, in cells."""
LARGEST = 6.0
"""Largest logarithm of a side, in units of SIDE cells, so that no size overflows."""


class Outputs(NamedTuple):
    """What a detector computes for B images on a map of h × w cells.

    - `centres`: (B, K, h, w), for each class the logit that an object's centre is in the cell.
    - `quality`: (B, 1, h, w), logit of the IoU that the box of the cell is expected to have.
    - `boxes`: (B, 4, h, w), left, top, right, bottom of the cell's box, in pixels of the input.
    - `inside`: (B, h, w), whether a cell has a pixel of the image; None: there is no padding.
    - `stride`: (vertical, horizontal) side of a cell, in pixels.
    """

    centres: Float[Tensor, "B K h w"]
    quality: Float[Tensor, "B 1 h w"]
    boxes: Float[Tensor, "B 4 h w"]
    inside: Bool[Tensor, "B h w"] | None = None
    stride: tuple[float, float] = (1.0, 1.0)


_register_namedtuple(Outputs, serialized_type_name="vismoe.detection.Outputs")  # so that torch.export saves it


class CentreHead(nn.Module):
    """Predicts, for each cell of a map, which classes have an object's centre there, the object's box, and how good
    that box is.

    **Arguments:**

    - `width`: width of the map.
    - `num_classes`: number of classes, K.
    - `stride`: (vertical, horizontal) side of a cell in pixels.
    - `depth`: number of 3 × 3 convolutions before the predictions; default 2.
    """

    def __init__(self, width: int, num_classes: int, stride: tuple[float, float], depth: int = 2):
        super().__init__()
        self.stride = stride
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [LayerNorm2d(width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1)]
        self.tower = nn.Sequential(*layers, LayerNorm2d(width), nn.GELU())
        self.centre = nn.Conv2d(width, num_classes, 1)
        self.box = nn.Conv2d(width, 5, 1)
        for layer in (self.centre, self.box):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(cast(Tensor, layer.bias))
        nn.init.constant_(cast(Tensor, self.centre.bias), -math.log(1 / PRIOR - 1))

    def forward(self, x: Float[Tensor, "B width h w"]) -> Outputs:
        x = self.tower(x)
        # Boxes are computed in float32: bfloat16 has 8 bits, and an image has a thousand columns.
        centres, box = self.centre(x).float(), self.box(x).float()
        offsets, sides, quality = box.split([2, 2, 1], 1)
        stride = torch.tensor(self.stride[::-1], device=x.device, dtype=torch.float32)[:, None, None]
        middle = (cell_centres(x.shape[2], x.shape[3], x.device) + offsets) * stride
        half = sides.clamp(-LARGEST, LARGEST).exp() * (SIDE / 2) * stride
        quality = quality.clone()  # FSDP warns of outputs that are views
        return Outputs(centres, quality, torch.cat([middle - half, middle + half], 1), stride=self.stride)


def cell_centres(height: int, width: int, device: torch.device) -> Float[Tensor, "2 h w"]:
    """x and y of the middle of each cell, in cells."""
    rows = torch.arange(height, device=device, dtype=torch.float32) + 0.5
    columns = torch.arange(width, device=device, dtype=torch.float32) + 0.5
    return torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
