"""Position embeddings that are computed, not learned."""

import torch
from jaxtyping import Float
from torch import Tensor

TEMPERATURE = 10_000.0


def sincos2d(
    height: int, width: int, dim: int, temperature: float = TEMPERATURE, device: torch.device | None = None
) -> Float[Tensor, "patches d"]:
    """Where each patch of a grid lies, row by row: sines and cosines of its column, then of its row, a quarter of `dim`
    each, at angular frequencies from 1 down to 1 ÷ `temperature` (Chen et al. 2021, *MoCo v3*; the reference's).

    **Raises:** ValueError where `dim` is not a multiple of 4 that is at least 8, or the temperature is not positive.
    """
    if dim % 4 or dim < 8 or not temperature > 0:
        raise ValueError(
            f'embed_dim={dim}, pos_embed_temperature={temperature}: pos_embed="sincos2d" takes a multiple of 4 that '
            "is at least 8, and a positive temperature"
        )
    quarter = dim // 4
    frequency = 1 / temperature ** (torch.arange(quarter, device=device, dtype=torch.float32) / (quarter - 1))

    def waves(length: int) -> Tensor:
        # No matrix product: autocast would round it.
        angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], -1)

    column = waves(width)[None].expand(height, -1, -1)
    row = waves(height)[:, None].expand(-1, width, -1)
    return torch.cat([column, row], -1).flatten(0, 1)
