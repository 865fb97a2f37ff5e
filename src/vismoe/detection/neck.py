"""From a trunk's features to the map that the head reads."""

from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn


class Neck(nn.Module):
    """Doubles the resolution of a trunk's features by a transposed convolution, adds the fine detail of its stem if
    there is any, and mixes neighbours.

    **Arguments:**

    - `dim`: width of the features, d.
    - `detail_dim`: width of the fine detail, c; 0: there is none.
    - `width`: width of the map.
    """

    def __init__(self, dim: int, detail_dim: int, width: int):
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.up = nn.ConvTranspose2d(dim, width, 2, stride=2)
        self.detail = nn.Conv2d(detail_dim, width, 1) if detail_dim else None
        self.mix = nn.Sequential(LayerNorm2d(width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(
        self, features: Float[Tensor, "B d h w"], detail: Float[Tensor, "B c H W"] | None = None
    ) -> Float[Tensor, "B width 2h 2w"]:
        """The map. `detail` has the size of the map, or, if the sides of an image are odd, one row or column less."""
        mixed: Tensor = self.up(self.norm(features))
        if self.detail is not None and detail is not None:
            fine = self.detail(detail)
            rows, columns = mixed.shape[2] - fine.shape[2], mixed.shape[3] - fine.shape[3]
            mixed = mixed + nn.functional.pad(fine, (0, columns, 0, rows))
        return self.mix(mixed)
