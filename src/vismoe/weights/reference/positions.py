"""Position embeddings of the reference for images of another size."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


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
