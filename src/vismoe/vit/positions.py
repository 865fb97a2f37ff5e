"""Position embeddings: computed ones, and learned ones resized to another image size, as in the reference."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 10_000.0


def sincos2d(
    height: int, width: int, dim: int, temperature: float = TEMPERATURE, device: torch.device | None = None
) -> Float[Tensor, "patches d"]:
    """Position embeddings of the patches of a grid, row by row (Chen et al. 2021, *MoCo v3*; as in the reference).

    Each consists of sine and cosine of the patch's column, then of its row, `dim` ÷ 4 values each, with angular
    frequencies from 1 down to 1 ÷ `temperature`.

    **Arguments:**

    - `height`, `width`: of the grid, in patches.
    - `dim`: width of the embedding, a multiple of 4, at least 8.
    - `temperature`: above 0; default 10 000.
    - `device`: device of the result; default: torch's.

    **Returns:** (height · width, dim) float32.

    **Raises:** ValueError for another `dim` or temperature.
    """
    if dim % 4 or dim < 8:
        raise ValueError(f'embed_dim={dim}: accepted for pos_embed="sincos2d" are multiples of 4 that are at least 8')
    if not temperature > 0:
        raise ValueError(f"pos_embed_temperature={temperature}: it must be above 0")
    quarter = dim // 4
    frequency = 1 / temperature ** (torch.arange(quarter, device=device, dtype=torch.float32) / (quarter - 1))

    def waves(length: int) -> Tensor:
        # Not a matrix product, which autocast would round.
        angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], -1)

    column = waves(width)[None].expand(height, -1, -1)
    row = waves(height)[:, None].expand(-1, width, -1)
    return torch.cat([column, row], -1).flatten(0, 1)


def resize_positions(positions: Float[Tensor, "1 N dim"], tokens: int) -> Float[Tensor, "1 M dim"]:
    """Resizes the position embedding of a square grid of patches, see `zoom`.

    **Arguments:**

    - `positions`: (1, N, dim), of N patches, or of a class token and N − 1 patches. The class token's row is unchanged.
    - `tokens`: new number of tokens M, with or without a class token.

    **Returns:** (1, M, dim).

    **Raises:** ValueError if the patches do not form a square, or if only `tokens` has a class token.
    """
    (grid, token), (new_grid, new_token) = _grid(positions.shape[1]), _grid(tokens)
    if new_token and not token:
        raise ValueError(
            f"a position embedding of {grid} × {grid} patches has no class token, so it cannot be resized to {tokens} "
            "tokens"
        )
    kept = positions if new_token == token else positions[:, 1:]
    return kept if grid == new_grid else zoom(kept, (grid, grid), (new_grid, new_grid))


def zoom(positions: Float[Tensor, "1 old d"], old: tuple[int, int], new: tuple[int, int]) -> Float[Tensor, "1 new d"]:
    """Resizes position embeddings from one grid of patches to another, as the reference's `vit_zoom` does: bilinear
    interpolation with aligned corners. (timm and PyTorch do not align corners by default, so their values differ.)

    **Arguments:**

    - `positions`: (1, N, d). Rows before the patches, such as the class token's, are unchanged.
    - `old`, `new`: (height, width) of the grids, in patches.
    """
    prefix = positions.shape[1] - old[0] * old[1]
    grid = positions[:, prefix:].double().unflatten(1, old).movedim(-1, 1)
    resized = F.interpolate(grid, new, mode="bilinear", align_corners=True)
    return torch.cat([positions[:, :prefix], resized.flatten(2).mT.to(positions)], 1)


def _grid(tokens: int) -> tuple[int, bool]:
    """The side of the grid in patches, and whether there is a class token."""
    for token in (False, True):
        side = math.isqrt(max(tokens - token, 0))
        if side and side * side == tokens - token:
            return side, token
    raise ValueError(f"{tokens} tokens do not form a square grid of patches, with or without a class token")
