"""Attention rollout: how much each patch reaches the answer through all attention layers (Abnar & Zuidema 2020,
*Quantifying Attention Flow in Transformers*)."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.layers import Attention, AttentionRope
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from vismoe.moe import condition
from vismoe.vit import evaluating

KINDS = (Attention, AttentionRope, EvaAttention)


def has_rollout(model: nn.Module) -> bool:
    """Whether `attention_rollout` can read the attention of a network: one of timm's attention modules in each block,
    over all tokens."""
    return not _reason_against(model)


def attention_rollout(
    model: nn.Module, pixels: Float[Tensor, "B C H W"], mask: Bool[Tensor, "B H W"] | None = None
) -> Float[Tensor, "rows columns"]:
    """The share of each patch in the answer, if information only moved by attention: of each block the mean over heads,
    half of it with the identity (the residual), multiplied over the blocks. It does not see what the experts did.

    **Arguments:**

    - `model`: a vision transformer of vismoe's or timm's, or a detector around one. No other thread may run it
      meanwhile.
    - `pixels`: one image, as the network takes it.
    - `mask`: False where a pixel is padding; default None: no padding.

    **Returns:** (rows, columns) of patches; sums to 1. It is what reaches the class token, if the answer is read from
    it, otherwise the mean over the patches.

    **Raises:** ValueError for another network, and for more than one image.
    """
    if reason := _reason_against(model):
        raise ValueError(f"{type(model).__name__} has no attention rollout: {reason}")
    if pixels.ndim != 4 or len(pixels) != 1:
        raise ValueError(f"pixels of shape {tuple(pixels.shape)}: expected one image, (1, channels, height, width)")
    trunk = _trunk(model)
    reads = nullcontext() if mask is None else condition(trunk, mask)
    with evaluating(model), torch.no_grad(), _attention(trunk) as maps, reads:
        trunk.forward_features(pixels)
    size = maps[0].shape[0]
    rows, columns = trunk.patch_embed.grid_size
    prefix = size - rows * columns
    reached = torch.zeros(size)
    if getattr(trunk, "global_pool", "") == "token" and model is trunk:
        reached[0] = 1
    else:
        reached[prefix:] = 1 / (rows * columns)
    for attention in reversed(maps):
        reached = 0.5 * reached + 0.5 * (reached @ attention)
    patches = reached[prefix:].view(rows, columns)
    return patches / patches.sum()


def _trunk(model: Any) -> Any:
    return getattr(model, "trunk", model)


def _reason_against(model: Any) -> str:
    """Why the attention of a network cannot be read; "" if it can."""
    trunk = _trunk(model)
    if not hasattr(trunk, "blocks") or not hasattr(getattr(trunk, "patch_embed", None), "grid_size"):
        return "expected blocks over a grid of patches"
    if getattr(model, "windowed_blocks", 0):
        return "blocks attend within windows"
    blocks = [block for block in trunk.blocks if any(isinstance(module, KINDS) for module in block.modules())]
    return "" if len(blocks) == len(trunk.blocks) else "its attention is not one of timm's modules"


@contextmanager
def _attention(trunk: nn.Module) -> Iterator[list[Tensor]]:
    """Context in which attention is computed step by step. Yields the list of what each module attended to, (S, S),
    mean over heads (and over the members of an ensemble)."""
    maps: list[Tensor] = []
    modules: list[Any] = [module for module in trunk.modules() if isinstance(module, KINDS)]
    fused = [module.fused_attn for module in modules]

    def keep(module: nn.Module, inputs: Any, attention: Tensor) -> None:
        maps.append(attention.detach().float().mean((0, 1)).cpu())

    hooks = [module.attn_drop.register_forward_hook(keep) for module in modules]
    try:
        for module in modules:
            module.fused_attn = False
        yield maps
    finally:
        for module, own, hook in zip(modules, fused, hooks, strict=True):
            module.fused_attn = own
            hook.remove()
