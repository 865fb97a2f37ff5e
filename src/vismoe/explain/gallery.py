"""The patches that each expert takes most surely."""

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from vismoe.inference import Predictor

from .tokens import LayerTokens
from .trace import shown_image

MOST, SIDE = 12, 60
"""Number of patches of an expert, and the least side of their images in pixels."""


class Gallery:
    """For each of E experts the patches with the largest gates, of different images, each with the patches around it.

    **Arguments:** `num_experts`: number of experts E.
    """

    def __init__(self, num_experts: int):
        self.num_experts = num_experts
        self.gates = torch.full((num_experts, 0), -1.0)
        self.crops = torch.empty(0)

    def update(self, layer: LayerTokens, pixels: Float[Tensor, "B C H W"]) -> None:
        """Adds the patches of a batch."""
        own = torch.where(layer.chosen(), layer.gates, -1)[:, layer.prefix :]
        best = own.max(1)  # each image's surest patch of each expert: (B, E)
        surest = best.values.T.topk(min(MOST, len(own)))
        image = surest.indices
        patch = best.indices.T.gather(1, image)
        crops = _crops(pixels.cpu(), layer.grid, image, patch)
        crops = crops if not self.crops.numel() else torch.cat([self.crops, crops], 1)
        gates = torch.cat([self.gates, surest.values], 1)
        kept = gates.topk(min(MOST, gates.shape[1]))
        self.gates = kept.values
        self.crops = crops[torch.arange(self.num_experts)[:, None], kept.indices]

    def images(self, predictor: Predictor) -> list[list[tuple[Image.Image, float]]]:
        """For each expert its patches as images, surest first, with their gates. A frame marks the patch."""
        return [
            [
                (_framed(shown_image(predictor, crop)), gate)
                for crop, gate in zip(self.crops[expert], gates, strict=True)
                if gate >= 0
            ]
            for expert, gates in enumerate(self.gates.tolist())
        ]


def _crops(pixels: Tensor, grid: tuple[int, int], image: Tensor, patch: Tensor) -> Tensor:
    """Patches by number of image and patch (E, n), each with the eight around it: (E, n, C, 3 h, 3 w). Outside the
    image is 0, the mean colour."""
    (rows, columns), (height, width) = grid, pixels.shape[-2:]
    h, w = -(-height // rows), -(-width // columns)
    margin = (w, w + columns * w - width, h, h + rows * h - height)
    windows = F.pad(pixels, margin).unfold(2, 3 * h, h).unfold(3, 3 * w, w)
    return windows[image, :, patch // columns, patch % columns]


def _framed(crop: Image.Image) -> Image.Image:
    scale = max(1, -(-SIDE // max(crop.size)))
    large = crop.resize((crop.width * scale, crop.height * scale), Image.Resampling.NEAREST)
    left, top = large.width // 3, large.height // 3
    draw = ImageDraw.Draw(large)
    draw.rectangle((left - 1, top - 1, 2 * left, 2 * top), outline="black")
    draw.rectangle((left - 2, top - 2, 2 * left + 1, 2 * top + 1), outline="white")
    return large
