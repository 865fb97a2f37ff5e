"""Position embeddings: computed ones, and learned ones stretched to images of another size, as the reference does."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

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


def resize_positions(positions: Float[Tensor, "1 N dim"], tokens: int) -> Float[Tensor, "1 M dim"]:
    """Stretches the square of patches of a position embedding, see `zoom`.

    **Arguments:** `positions`: of N patches, or of a class token and N - 1 patches; `tokens`: M, the number wanted,
    with a class token or without one. A class token's row is kept as it is.

    **Raises:** ValueError where patches form no square, or a class token is wanted and there is none.
    """
    (grid, token), (wanted_grid, wanted_token) = _grid(positions.shape[1]), _grid(tokens)
    if wanted_token and not token:
        raise ValueError(f"a position embedding of {grid} × {grid} patches alone cannot be one of {tokens} tokens")
    kept = positions if wanted_token == token else positions[:, 1:]
    return kept if grid == wanted_grid else zoom(kept, (grid, grid), (wanted_grid, wanted_grid))


def zoom(positions: Float[Tensor, "1 old d"], old: tuple[int, int], new: tuple[int, int]) -> Float[Tensor, "1 new d"]:
    """Position embeddings of a grid of patches on another one, as the reference's `vit_zoom`: bilinear, the corners
    stay where they are (timm's and PyTorch's usual way keeps the edges instead, and gives other values). What comes
    before the patches, such as the class token's, stays."""
    first = positions.shape[1] - old[0] * old[1]
    grid = positions[:, first:].double().unflatten(1, old).movedim(-1, 1)
    resized = F.interpolate(grid, new, mode="bilinear", align_corners=True)
    return torch.cat([positions[:, :first], resized.flatten(2).mT.to(positions)], 1)


def _grid(tokens: int) -> tuple[int, bool]:
    """Patches on a side, and whether there is a class token beside them."""
    for token in (False, True):
        side = math.isqrt(max(tokens - token, 0))
        if side and side * side == tokens - token:
            return side, token
    raise ValueError(f"{tokens} tokens are no square of patches, with a class token or without one")
