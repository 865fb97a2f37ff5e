"""Position embeddings: computed, or learned and resized to another image size, as the reference does."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 10_000.0


def sincos2d(
    height: int, width: int, dim: int, temperature: float = TEMPERATURE, device: torch.device | None = None
) -> Float[Tensor, "patches d"]:
    """The position of each patch of a grid, row by row: sines and cosines of its column, then of its row, a quarter of
    `dim` each, at angular frequencies from 1 down to 1 ÷ `temperature` (Chen et al. 2021, *MoCo v3*; the reference's).

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
    """Resizes the square of patches of a position embedding, see `zoom`.

    **Arguments:**

    - `positions`: of N patches, or of a class token and N - 1 patches. The class token's row is kept as it is.
    - `tokens`: M, the new number of tokens, with or without a class token.

    **Raises:** ValueError where patches form no square, or `tokens` has a class token and `positions` has none.
    """
    (grid, token), (new_grid, new_token) = _grid(positions.shape[1]), _grid(tokens)
    if new_token and not token:
        raise ValueError(f"a position embedding of {grid} × {grid} patches alone cannot be one of {tokens} tokens")
    kept = positions if new_token == token else positions[:, 1:]
    return kept if grid == new_grid else zoom(kept, (grid, grid), (new_grid, new_grid))


def zoom(positions: Float[Tensor, "1 old d"], old: tuple[int, int], new: tuple[int, int]) -> Float[Tensor, "1 new d"]:
    """Resizes position embeddings from one grid of patches to another, as the reference's `vit_zoom`: bilinear, the
    corners stay where they are (timm's and PyTorch's default keeps the edges instead, and gives other values). Rows
    before the patches, such as the class token's, are kept."""
    prefix = positions.shape[1] - old[0] * old[1]
    grid = positions[:, prefix:].double().unflatten(1, old).movedim(-1, 1)
    resized = F.interpolate(grid, new, mode="bilinear", align_corners=True)
    return torch.cat([positions[:, :prefix], resized.flatten(2).mT.to(positions)], 1)


def _grid(tokens: int) -> tuple[int, bool]:
    """Patches on a side, and whether there is a class token."""
    for token in (False, True):
        side = math.isqrt(max(tokens - token, 0))
        if side and side * side == tokens - token:
            return side, token
    raise ValueError(f"{tokens} tokens are no square of patches, with a class token or without one")
