"""Feature maps of trunks: vision transformers, and other networks of timm's."""

from contextlib import nullcontext
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vismoe.moe import condition
from vismoe.vit.stem import ConvEmbed

MOST_PIXELS = 16
"""The map with the most features whose cells have at most this side, in pixels, is used."""


def stride_of(trunk: Any) -> tuple[int, tuple[int, int]]:
    """The width of a trunk's features, and the (vertical, horizontal) side of a cell in pixels.

    **Raises:** ValueError for a network without feature maps.
    """
    if _is_transformer(trunk):
        vertical, horizontal = trunk.patch_embed.patch_size
        return int(trunk.embed_dim), (int(vertical), int(horizontal))
    entry = trunk.feature_info[_map_of(trunk)]
    return int(entry["num_chs"]), (int(entry["reduction"]),) * 2


def remove_unused(trunk: Any) -> None:
    """Removes the parts of a trunk that its feature map does not need. Their parameters would get no gradient, and
    training with several processes needs one for every parameter."""
    if _is_transformer(trunk):
        for name in ("fc_norm", "representation"):  # a method that resets the classifier would change the pooling too
            if isinstance(getattr(trunk, name, None), nn.Module):
                setattr(trunk, name, nn.Identity())
        if getattr(trunk, "attn_pool", None) is not None:
            trunk.attn_pool = None
    elif hasattr(trunk, "prune_intermediate_layers"):
        trunk.prune_intermediate_layers([_map_of(trunk)], prune_norm=True, prune_head=True)


def _is_transformer(trunk: Any) -> bool:
    """Whether all blocks have patches of one size."""
    return hasattr(trunk, "blocks") and hasattr(getattr(trunk, "patch_embed", None), "patch_size")


def _map_of(trunk: Any) -> int:
    """The number of the map that is used."""
    if not hasattr(trunk, "forward_intermediates") or not hasattr(trunk, "feature_info"):
        raise ValueError(
            f"{type(trunk).__name__} has no feature maps: accepted are networks of vismoe and timm that do"
        )
    strides = [int(entry["reduction"]) for entry in trunk.feature_info]
    fitting = [index for index, stride in enumerate(strides) if stride <= MOST_PIXELS]
    if not fitting:
        raise ValueError(
            f"{type(trunk).__name__} has no feature map with cells of at most {MOST_PIXELS} pixels: its maps have "
            f"{', '.join(map(str, strides))}"
        )
    return fitting[-1]


def detail_of(trunk: Any) -> int:
    """The width of the map of fine detail that `embed` returns; 0: there is none."""
    embedding = getattr(trunk, "patch_embed", None)
    if not isinstance(trunk, VisionTransformer) or not isinstance(embedding, ConvEmbed):
        return 0
    convolutions = list(embedding.backbone.children())
    return int(cast(Any, convolutions[-2]).out_channels) if len(convolutions) > 1 else 0


def embed(
    trunk: nn.Module, pixels: Float[Tensor, "B C H W"]
) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B c rows columns"] | None]:
    """The tokens of a vision transformer before its first block; and, of a convolutional stem, the map before its last
    convolution, which has twice the resolution.

    **Raises:** ValueError for another network.
    """
    vit: Any = _checked(trunk)
    if detail_of(vit):
        *_, detail, last = vit.patch_embed.maps(pixels)
        embedded = vit.patch_embed.as_tokens(last)
    else:
        detail, embedded = None, vit.patch_embed(pixels)
    return vit.norm_pre(vit.patch_drop(vit._pos_embed(embedded))), detail


def run_blocks(trunk: nn.Module, tokens: Float[Tensor, "B S d"], start: int, end: int | None) -> Float[Tensor, "B S d"]:
    """The tokens after some blocks of a vision transformer, numbers `start` to `end`, without `end`."""
    vit: Any = _checked(trunk)
    recomputes = vit.grad_checkpointing and torch.is_grad_enabled()
    for block in vit.blocks[start:end]:
        tokens = checkpoint(block, tokens, use_reentrant=False) if recomputes else block(tokens)
    return tokens


def run_in_windows(
    trunk: nn.Module,
    tokens: Float[Tensor, "B S d"],
    start: int,
    side: int,
    mask: Bool[Tensor, "B h w"] | None,
) -> Float[Tensor, "B N d"]:
    """The tokens of the patches after the blocks from `start` on, in which a patch attends only to the patches of its
    window of `side` × `side`.

    **Arguments:**

    - `trunk`: a vision transformer.
    - `tokens`: the tokens before the first of these blocks; those before the patches (class token, …) are left out.
    - `start`: number of the first of these blocks.
    - `side`: height and width of a window, in patches.
    - `mask`: which patches have a pixel of the image; None: all.
    """
    vit: Any = _checked(trunk)
    height, width = vit.patch_embed.grid_size
    grid = tokens[:, vit.num_prefix_tokens :].unflatten(1, (height, width))
    below, right = -height % side, -width % side
    if mask is None and (below or right):
        mask = torch.ones(tokens.shape[0], height, width, dtype=torch.bool, device=tokens.device)
    windows = _cut(F.pad(grid, (0, 0, 0, right, 0, below)), side)
    inside = None if mask is None else _cut(F.pad(mask, (0, right, 0, below))[..., None], side)[..., 0]
    with nullcontext() if inside is None else condition(trunk, inside):
        windows = run_blocks(trunk, windows, start, None)
    rows, columns = (height + below) // side, (width + right) // side
    grid = windows.unflatten(0, (-1, rows, columns)).unflatten(3, (side, side)).transpose(2, 3)
    return grid.flatten(1, 2).flatten(2, 3)[:, :height, :width].flatten(1, 2)


def _cut(grid: Tensor, side: int) -> Tensor:
    """A grid (B, h, w, …) cut into windows, (B · windows, side², …), row by row."""
    rows, columns = grid.shape[1] // side, grid.shape[2] // side
    windows = grid.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3)
    return windows.flatten(0, 2).flatten(1, 2)


def as_map(trunk: nn.Module, tokens: Float[Tensor, "B S d"]) -> Float[Tensor, "B d h w"]:
    """The features of the patches as a map, from the tokens after the last block."""
    vit: Any = _checked(trunk)
    patches = vit.patch_embed.grid_size[0] * vit.patch_embed.grid_size[1]
    features: Tensor = vit.norm(tokens)[:, -patches:]
    return features.mT.unflatten(2, vit.patch_embed.grid_size)


def map_of(trunk: Any, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B d h w"]:
    """The features of any other network of timm's as a map."""
    is_transformer = _is_transformer(trunk)
    index = len(trunk.blocks) - 1 if is_transformer else _map_of(trunk)
    (found,) = trunk.forward_intermediates(
        pixels, indices=[index], norm=is_transformer, output_fmt="NCHW", intermediates_only=True
    )
    return cast(Tensor, found)


def _checked(trunk: nn.Module) -> Any:
    if not isinstance(trunk, VisionTransformer):
        raise ValueError(f"{type(trunk).__name__} cannot start from tokens: expected a VisionTransformer of timm's")
    return trunk
