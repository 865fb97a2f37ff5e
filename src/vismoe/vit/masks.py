"""Keeps padding out of a network of images: parts of timm's that read the mask of `vismoe.condition`.

A mask of pixels becomes a mask of tokens once, when the condition is opened. Then the patch embedding sets padded
pixels to 0, attention and pooling leave padded tokens out, and sparse layers do not route them.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.layers import Attention, AttentionRope, DiffAttention, PatchEmbed
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.nn import functional as F

from vismoe.moe.condition import Conditions


def patch_mask(pixels: Bool[Tensor, "B H W"], patch: tuple[int, int]) -> Bool[Tensor, "B h w"]:
    """Whether a patch has a pixel of the image. Sides are rounded up."""
    return F.max_pool2d(pixels[:, None].float(), patch, ceil_mode=True)[:, 0] > 0


def rows_of(mask: Bool[Tensor, "B S"], x: Tensor) -> Bool[Tensor, "R S"]:
    """The mask of the rows of `x`, (R, S, …): of an ensemble there are several for each image.

    **Raises:** ValueError for another number of tokens.
    """
    if mask.shape[1] != x.shape[1]:
        raise ValueError(
            f"mask of {mask.shape[1]} tokens for {x.shape[1]}: a mask fits where every token of an image is processed, "
            "so without patch_drop_rate"
        )
    return mask.repeat_interleave(x.shape[0] // mask.shape[0], 0) if x.shape[0] != mask.shape[0] else mask


def zero_padding(x: Float[Tensor, "B C H W"], mask: Bool[Tensor, "B H W"]) -> Float[Tensor, "B C H W"]:
    """Sets padding to 0. It is chosen, not multiplied: 0 · NaN is NaN."""
    return torch.where(mask[:, None], x, 0)


class MaskedEmbedding(nn.Module):
    """A patch embedding that reads masks: it tells padded pixels, and which tokens a mask of pixels leaves.

    **Attributes:**

    - `conditions`: where `vismoe.condition` leaves the mask.
    - `prefix_tokens`: number of tokens before the patches; no mask leaves them out.
    """

    conditions: Conditions
    prefix_tokens: int
    patch_size: tuple[int, int]
    dynamic_feat_size: Any

    def token_mask(self, pixels: Bool[Tensor, "B H W"]) -> Bool[Tensor, "B S"]:
        """The mask of tokens: those before the patches, and patches with a pixel of the image."""
        return F.pad(patch_mask(pixels, self.patch_size).flatten(1), (self.prefix_tokens, 0), value=True)

    def pixel_mask(self, x: Float[Tensor, "B C H W"]) -> Bool[Tensor, "B H W"] | None:
        """The mask of the pixels of a batch; None if no condition has one.

        **Raises:** ValueError for a mask of another shape or type.
        """
        condition = self.conditions.current()
        if condition.mask is None:
            return None
        images, (height, width) = x.shape[0], x.shape[-2:]
        grid = self.dynamic_feat_size((height, width))
        given = condition.mask if condition.pixels is None else condition.pixels
        expected = (images, self.prefix_tokens + grid[0] * grid[1]), (images, height, width)
        if given.shape not in expected or given.dtype != torch.bool:
            raise ValueError(
                f"mask of shape {tuple(given.shape)} and type {given.dtype}: expected {expected[1]}, images × height × "
                f"width, or {expected[0]}, images × tokens; torch.bool, False for padding"
            )
        if condition.pixels is not None:
            return condition.pixels
        patches = condition.mask[:, self.prefix_tokens :].unflatten(1, grid)
        rows, columns = self.patch_size
        return patches.repeat_interleave(rows, 1).repeat_interleave(columns, 2)[:, :height, :width]


class MaskedPatchEmbed(MaskedEmbedding, PatchEmbed):
    """timm's `PatchEmbed` for which padded pixels are 0."""

    def forward(self, x: Tensor) -> Tensor:
        mask = self.pixel_mask(x)
        embedded: Tensor = super().forward(x if mask is None else zero_padding(x, mask))
        return embedded


def _keys(attention: Any, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor | None:
    """The mask of attention: no token attends to padding. In an image of nothing but padding each attends to each,
    because attention to nothing is NaN."""
    mask = attention.conditions.current().mask
    if mask is None:
        return attn_mask
    if attn_mask is not None or is_causal:
        raise ValueError("vismoe.condition has a mask, and attn_mask or is_causal was given: give one of them")
    mask = rows_of(mask, x)
    return (mask | ~mask.any(1, keepdim=True))[:, None, None]


class MaskedAttention(Attention):
    """timm's `Attention` without attention to padding."""

    conditions: Conditions

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        mixed: Tensor = super().forward(x, _keys(self, x, attn_mask, is_causal), is_causal)
        return mixed


class MaskedDiffAttention(DiffAttention):
    """timm's `DiffAttention` without attention to padding."""

    conditions: Conditions

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        mixed: Tensor = super().forward(x, _keys(self, x, attn_mask, is_causal), is_causal)
        return mixed


class MaskedAttentionRope(AttentionRope):
    """timm's `AttentionRope` without attention to padding."""

    conditions: Conditions

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        mixed: Tensor = super().forward(x, rope, _keys(self, x, attn_mask, is_causal), is_causal)
        return mixed


class MaskedEvaAttention(EvaAttention):
    """timm's `EvaAttention` without attention to padding."""

    conditions: Conditions

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        mixed: Tensor = super().forward(x, rope, _keys(self, x, attn_mask, is_causal), is_causal)
        return mixed


ATTENTION: dict[type[nn.Module], type[nn.Module]] = {
    Attention: MaskedAttention,
    DiffAttention: MaskedDiffAttention,
    AttentionRope: MaskedAttentionRope,
    EvaAttention: MaskedEvaAttention,
}


def accept_masks(model: nn.Module) -> nn.Module:
    """Lets a timm network read the masks of `vismoe.condition`, for its features: no padded pixel or token changes the
    features of another token. (vismoe's own networks do so without this call.) The features of padding have no meaning,
    and a pooling other than the class token counts them: pool the features yourself.

    **Arguments:**

    - `model`: a timm network with a patch embedding and blocks whose attention is one of `Attention`, `AttentionRope`,
      `DiffAttention`, `EvaAttention`, also an upcycled one: ViT, DeiT, DINOv2, DINOv3, SigLIP, EVA-02, … It is changed
      in place: these modules get classes that derive from their own. Without a mask they compute what they did.

    **Returns:** the network.

    **Raises:** ValueError for another network.
    """
    if not read_masks(model):
        accepted = ", ".join(attention.__name__ for attention in ATTENTION)
        raise ValueError(
            f"{type(model).__name__} cannot read masks: accepted are timm networks with PatchEmbed and, in each block, "
            f"one of {accepted}"
        )
    return model


def read_masks(model: Any) -> bool:
    """Makes the modules of a network that can do so read masks, see `accept_masks`. Returns whether the patch embedding
    and the attention of each block are among them."""
    if not all(hasattr(model, name) for name in ("patch_embed", "blocks", "num_prefix_tokens")):
        return False
    for module in model.modules():
        masked = ATTENTION.get(type(module))
        if module is model.patch_embed and type(module) is PatchEmbed:
            masked = MaskedPatchEmbed
        if masked is not None:
            module.__class__, module.conditions = masked, Conditions()
    model.patch_embed.prefix_tokens = model.num_prefix_tokens
    attention = tuple(ATTENTION.values())
    blocks = [any(isinstance(module, attention) for module in block.modules()) for block in model.blocks]
    return isinstance(model.patch_embed, MaskedEmbedding) and all(blocks)


def zero_features(features: Any, mask: Bool[Tensor, "B S"], patches: Bool[Tensor, "B N"]) -> Any:
    """Sets the features of padding to 0 in whatever timm's `forward_intermediates` returns: maps (B, d, h, w) or rows
    (B, N, d) of the patches, alone or with (B, P, d) of the tokens before them; a dictionary of those; and the final
    features (B, S, d).

    **Arguments:**

    - `features`: what `forward_intermediates` returned.
    - `mask`: which tokens are no padding.
    - `patches`: which patches are no padding.
    """

    def zero(one: Any) -> Any:
        if isinstance(one, tuple):
            return zero(one[0]), torch.where(mask[:, : one[1].shape[1], None], one[1], 0)
        if one.ndim == 4:
            return torch.where(patches.unflatten(1, one.shape[2:])[:, None], one, 0)
        return torch.where(patches[..., None], one, 0)

    def zero_final(final: Tensor) -> Tensor:
        return torch.where(mask[..., None], final, 0)

    if isinstance(features, dict):
        prefix = mask[:, : mask.shape[1] - patches.shape[1], None]
        of_entry = {
            "image_features": zero_final,
            "image_intermediates": lambda maps: [zero(one) for one in maps],
            "image_intermediates_prefix": lambda tokens: [torch.where(prefix, one, 0) for one in tokens],
        }
        return {name: of_entry[name](value) for name, value in features.items()}
    if isinstance(features, list):
        return [zero(one) for one in features]
    return zero_final(features[0]), [zero(one) for one in features[1]]


def masked_pool(model: Any, x: Float[Tensor, "B S d"], mask: Bool[Tensor, "B S"], pool_type: str) -> Tensor:
    """timm's pooling of the tokens that are no padding.

    **Arguments:**

    - `model`: a timm VisionTransformer.
    - `x`, `mask`: its tokens, and whether they are no padding.
    - `pool_type`: timm's name of the pooling: "token", "avg", "avgmax", "max", "map"; "": none.

    **Raises:** ValueError for another pooling.
    """
    if pool_type == "":
        return x
    if pool_type == "token":
        return x[:, 0]
    if not model.pool_include_prefix:
        x, mask = x[:, model.num_prefix_tokens :], mask[:, model.num_prefix_tokens :]
    if pool_type == "map":
        keys = (mask | ~mask.any(1, keepdim=True))[:, None, None]
        # Added to the scores: without fused attention timm adds this mask as it is.
        pooled: Tensor = model.attn_pool(x, torch.zeros_like(keys, dtype=x.dtype).masked_fill(~keys, -torch.inf))
        return pooled
    if pool_type not in ("avg", "avgmax", "max"):
        raise ValueError(f"global_pool={pool_type!r} accepts no mask: use token, avg, avgmax, max or map")
    mask = mask[..., None]
    mean = torch.where(mask, x, 0).sum(1) / mask.sum(1).clamp_min(1)
    if pool_type == "avg":
        return mean
    largest = torch.where(mask, x, -torch.inf).amax(1)
    largest = torch.where(mask.any(1), largest, 0)
    return largest if pool_type == "max" else 0.5 * (largest + mean)
