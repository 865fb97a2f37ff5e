"""From a trunk's features to the map that the head reads."""

from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

PIXEL_WIDTH = 64
"""Width of the features of pixels."""


class PixelDetail(nn.Sequential):
    """Features of the pixels of each cell of the map, for trunks whose patches are too coarse for small objects.

    **Arguments:**

    - `in_chans`: number of channels of the images.
    - `width`: width of the map.
    - `cell`: (height, width) of a cell in pixels.
    """

    def __init__(self, in_chans: int, width: int, cell: tuple[int, int]):
        super().__init__(
            nn.Conv2d(in_chans, PIXEL_WIDTH, cell, stride=cell),
            LayerNorm2d(PIXEL_WIDTH),
            nn.GELU(),
            nn.Conv2d(PIXEL_WIDTH, width, 3, padding=1),
        )


class Neck(nn.Module):
    """Doubles the resolution of a trunk's features by a transposed convolution, adds fine detail if there is any, and
    mixes neighbours.

    **Arguments:**

    - `dim`: width of the features, d.
    - `detail`: makes fine detail, (B, width, H, W), of a map of twice the resolution or of pixels; None: there is none.
    - `width`: width of the map.
    """

    def __init__(self, dim: int, detail: nn.Module | None, width: int):
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.up = nn.ConvTranspose2d(dim, width, 2, stride=2)
        self.detail = detail
        self.mix = nn.Sequential(LayerNorm2d(width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(
        self, features: Float[Tensor, "B d h w"], fine: Float[Tensor, "B c H W"] | None = None
    ) -> Float[Tensor, "B width 2*h 2*w"]:
        """The map. What `detail` makes of `fine` has the size of the map, or, if the sides of an image are odd, one row
        or column less."""
        mixed: Tensor = self.up(self.norm(features))
        if self.detail is not None and fine is not None:
            added = self.detail(fine)
            rows, columns = mixed.shape[2] - added.shape[2], mixed.shape[3] - added.shape[3]
            mixed = mixed + nn.functional.pad(added, (0, columns, 0, rows))
        mapped: Tensor = self.mix(mixed)
        return mapped
