"""What each sparse layer did with each token of a batch, image by image."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vismoe.moe import MemberRouter, Recording
from vismoe.moe.record import LayerRecord

from .routing import choices_of_tokens


@dataclass(frozen=True)
class LayerTokens:
    """One sparse layer's routing of B images with S tokens each.

    - `name`: name of the layer, such as "blocks.1".
    - `num_experts`: number of experts E.
    - `grid`: (rows, columns) of patches.
    - `prefix`: number of tokens before the patches (class token, registers).
    - `expert`: the experts of each token, best first; −1 for a dropped choice, see `experts_of_tokens`.
    - `weight`: their combine weights; 0 for a dropped choice.
    - `gates`: the router's weight of every (token, expert) pair.
    - `mask`: False where a token is padding.
    - `fixed_k`: whether each token chooses k experts; False: experts choose tokens.
    """

    name: str
    num_experts: int
    grid: tuple[int, int]
    prefix: int
    expert: Int[Tensor, "B S k"]
    weight: Float[Tensor, "B S k"]
    gates: Float[Tensor, "B S E"]
    mask: Bool[Tensor, "B S"]
    fixed_k: bool

    def chosen(self) -> Bool[Tensor, "B S E"]:
        """Whether each expert processes each token."""
        flags = torch.zeros(*self.expert.shape[:2], self.num_experts + 1, dtype=torch.bool)
        return flags.scatter_(2, self.expert + 1, True)[..., 1:]  # the first column is of dropped choices


def short_name(layer: str) -> str:
    """The name of a sparse layer without what all of them have: "blocks.1" for "trunk.blocks.1.mlp"."""
    return layer.removeprefix("trunk.").removesuffix(".mlp") or "layer"


def tokens_of(model: nn.Module, routing: Recording, images: int) -> list[LayerTokens]:
    """What the sparse layers of a network did with a batch.

    **Arguments:**

    - `model`: the network.
    - `routing`: the recording of one forward pass.
    - `images`: number of images of the batch.

    **Returns:** one entry for each call of a layer, in the order of the network, on the CPU.

    **Raises:** ValueError if the tokens of a layer are not a grid of patches.
    """
    return [
        _tokens(model, f"{short_name(name)}, call {number}" if len(calls) > 1 else short_name(name), call, images)
        for name, calls in routing.layers.items()
        for number, call in enumerate(calls, start=1)
    ]


def _tokens(model: nn.Module, name: str, call: LayerRecord, images: int) -> LayerTokens:
    expert, weight = choices_of_tokens(call.plan)
    # Of an ensemble, a token's members are adjacent. Another member's experts have the gate 0.
    members = call.router.members if isinstance(call.router, MemberRouter) else 1
    mask = call.routing.mask
    if mask is None:
        mask = torch.ones(len(expert), dtype=torch.bool)
    tables = [
        expert.view(images, -1, members * expert.shape[1]),
        weight.view(images, -1, members * expert.shape[1]),
        call.gates.flatten(0, 1).unflatten(0, (images, -1, members)).sum(2),
        mask.reshape(images, -1, members)[..., :1],
    ]
    grid, prefix, tables = _on_grid(model, name, tables)
    expert, weight, gates, mask = (table.detach().cpu() for table in tables)
    fixed_k = getattr(call.plan, "inverse", None) is not None
    return LayerTokens(name, len(call.load), grid, prefix, expert, weight.float(), gates.float(), mask[..., 0], fixed_k)


def _on_grid(model: Any, name: str, tables: list[Tensor]) -> tuple[tuple[int, int], int, list[Tensor]]:
    """The grid of patches, the number of tokens before them, and the tables (B, S, …) in the order of the grid."""
    tokens = tables[0].shape[1]
    trunk = getattr(model, "trunk", model)
    grid: tuple[int, int] | None = getattr(getattr(trunk, "patch_embed", None), "grid_size", None)
    if grid is not None:
        prefix = tokens - grid[0] * grid[1]
        if prefix == getattr(trunk, "num_prefix_tokens", prefix) and 0 <= prefix < min(grid) + 8:
            return (int(grid[0]), int(grid[1])), prefix, tables
        side = getattr(model, "window", 0)
        rows, columns = (-(-patches // side) for patches in grid) if side else (0, 0)
        if side and tokens == rows * columns * side**2:
            return (int(grid[0]), int(grid[1])), 0, [_unwindowed(each, rows, columns, side, grid) for each in tables]
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise ValueError(f"{name} has {tokens} tokens per image, which are not a grid of patches: nothing can be drawn")
    return (side, side), 0, tables


def _unwindowed(table: Tensor, rows: int, columns: int, side: int, grid: tuple[int, int]) -> Tensor:
    """A table whose tokens are ordered by windows of side × side patches, in the order of the grid."""
    windows = table.unflatten(1, (rows, columns, side, side)).transpose(2, 3)
    return windows.flatten(3, 4).flatten(1, 2)[:, : grid[0], : grid[1]].flatten(1, 2)
