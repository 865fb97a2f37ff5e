"""timm's VisionTransformer with some MLPs made sparse."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from timm.layers import LayerNorm, lecun_normal_, to_2tuple
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vismoe.moe import BalancedRouter, MoE
from vismoe.moe.condition import Conditions

from .config import OVERRIDES, MoEConfig
from .conversion.sparsify import fix_init, initialise_experts, sparsify
from .ensemble import mean_logits, repeat_before
from .masks import ATTENTION, masked_pool, read_masks, rows_of, zero_features
from .positions import TEMPERATURE, sincos2d
from .stem import ConvEmbed, check_patch_size
from .weight_decay import stacked_vectors


def _check_architecture(
    stem: str, pos_embed: str, temperature: float, qk_norm: bool | str, arguments: Mapping[str, Any]
) -> None:
    image, patch = to_2tuple(arguments.get("img_size", 224)), to_2tuple(arguments.get("patch_size", 16))
    if stem != "patch":
        check_patch_size(patch, stem)
    elif any(size % step for size, step in zip(image, patch, strict=True)):
        raise ValueError(
            f"image size {image[0]} × {image[1]} is not a multiple of the patch size {patch[0]} × {patch[1]}: "
            "choose img_size and patch_size so that patches tile the image"
        )
    if pos_embed not in ("learn", "none", "sincos2d"):
        raise ValueError(f'pos_embed={pos_embed!r}: accepted are "learn", "none" and "sincos2d"')
    if qk_norm not in (False, True, "scale", "scale-pool"):
        raise ValueError(f'qk_norm={qk_norm!r}: accepted are False, True, "scale" and "scale-pool"')
    if pos_embed == "sincos2d":
        sincos2d(1, 1, arguments.get("embed_dim", 768), temperature)  # only for its ValueError


def _norm_by_scale(attention: Any) -> None:
    """Replaces the norms of queries and keys by the reference's, which have a scale and no shift."""
    weight = attention.proj.weight
    for name in ("q_norm", "k_norm"):
        setattr(attention, name, LayerNorm(attention.head_dim, bias=False, device=weight.device, dtype=weight.dtype))


class SparseVisionTransformer(VisionTransformer):
    """timm's VisionTransformer, in which some MLPs can be MoE layers. It has all arguments and methods of timm's class.

    **Arguments:**

    - `moe`: a `MoEConfig` or a mapping of its fields: which MLPs become sparse, and how; default None: a dense model.
    - `representation_size`: width of a linear layer with tanh before the head, as in the reference; default 0: none.
    - `stem`: how an image becomes patches; default "patch".
        - "patch": one linear layer, as in timm.
        - "conv": timm's stack of convolutions (Xiao et al. 2021, *Early Convolutions Help Transformers See Better*).
          Each halves height and width, rounded up, so the patch size need not divide the image size. Its norms are
          layer norms, so an image's result does not depend on its batch.
    - `pos_embed`: position embedding; default "learn".
        - "learn", "none": as in timm.
        - "sincos2d": sines and cosines of each patch's row and column, for any image size. A class token gets none.
    - `pos_embed_std`: standard deviation of the initial position embedding; default 0.02, as in timm and in the
      reference. In a short training patches are hardly distinguished with this value; 1.0 is better there.
    - `pos_embed_temperature`: the lowest frequency of "sincos2d" is 1 ÷ temperature; default 10 000.
    - `qk_norm`: norms of queries and keys; default False: none.
        - True: timm's.
        - "scale": the reference's, without a shift; in the blocks and in a MAP head (global_pool="map").
        - "scale-pool": the reference's, only in the MAP head.
    - `predictions`: output of an ensemble (see `MoEConfig.ensemble_size`); default "members".
        - "members": one row of logits per member, [image 0 member 0, image 0 member 1, …].
        - "mean": one row per image, the logarithm of the members' mean probabilities; if there are no classes, their
          mean features.
    - `head_bias_init`: initial value of the head's biases, also of a new head; default 0: timm's scheme. The reference
      uses −log(classes) for a sum of sigmoid losses.
    - `arguments`: arguments of timm's VisionTransformer; and fields of `MoEConfig`, which override those in `moe`.

    **Raises:** ValueError if the patch size does not divide the image size (with stem="patch"), for unknown values, and
    for options of the sparse part that contradict each other.
    """

    head: nn.Module
    head_bias_init = 0.0  # a class attribute too, because timm's constructor already initialises the weights

    def __init__(
        self,
        moe: MoEConfig | Mapping[str, Any] | None = None,
        representation_size: int = 0,
        stem: str = "patch",
        pos_embed: str = "learn",
        pos_embed_std: float = 0.02,
        pos_embed_temperature: float = TEMPERATURE,
        qk_norm: bool | Literal["scale", "scale-pool"] = False,
        predictions: str = "members",
        head_bias_init: float = 0.0,
        **arguments: Any,
    ) -> None:
        overrides = {name: arguments.pop(name) for name in OVERRIDES if name in arguments}
        if overrides and moe is None:
            raise ValueError(f"{', '.join(overrides)}: this model is dense and has no experts; choose a sparse preset")
        _check_architecture(stem, pos_embed, pos_embed_temperature, qk_norm, arguments)
        arguments |= {"pos_embed": "learn" if pos_embed == "learn" else "none"}
        arguments |= {"qk_norm": qk_norm in (True, "scale")}
        super().__init__(**arguments | ({"embed_layer": ConvEmbed} if stem == "conv" else {}))
        self.conditions = Conditions()
        self.reads_masks = read_masks(self)
        self.sincos_temperature = pos_embed_temperature if pos_embed == "sincos2d" else None
        if pos_embed_std != 0.02 and self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=pos_embed_std, a=-2 * pos_embed_std, b=2 * pos_embed_std)
        if isinstance(qk_norm, str):
            blocks = [block.attn for block in self.blocks] if qk_norm == "scale" else []
            for attention in (*blocks, *([self.attn_pool] if self.attn_pool else [])):
                _norm_by_scale(attention)
        self.moe: MoEConfig | None = None
        if moe is not None:
            self.moe = (moe if isinstance(moe, MoEConfig) else MoEConfig(**moe)).changed(overrides)
            sparsify(self, self.moe)
            if self.ensemble_size:
                repeat_before(self.blocks[self.moe.blocks(len(self.blocks))[0]], self.ensemble_size)
        if predictions not in ("members", "mean") or (predictions == "mean" and not self.ensemble_size):
            raise ValueError(f'predictions={predictions!r}: accepted are "members" and, of an ensemble, "mean"')
        self.predictions = predictions
        self.representation: nn.Module = nn.Identity()
        if representation_size:
            linear = nn.Linear(self.embed_dim, representation_size)
            lecun_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
            self.representation = nn.Sequential(linear, nn.Tanh())
            self.head_hidden_size = representation_size
            self.reset_classifier(self.num_classes)
            if "jax" in self.weight_init_mode and isinstance(self.head, nn.Linear):
                fill = -math.log(self.num_classes) if "nlhb" in self.weight_init_mode else 0.0
                nn.init.zeros_(self.head.weight)
                nn.init.constant_(self.head.bias, fill)
        self.head_bias_init = head_bias_init
        self._initialise_head_bias()

    @property
    def ensemble_size(self) -> int:
        """Number of members; 0 if the network is not an ensemble."""
        return 0 if self.moe is None else self.moe.ensemble_size

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialises all weights as timm does. Experts are initialised like dense MLPs, balancing biases are 0."""
        super().init_weights(mode, needs_reset)
        self._initialise_head_bias()
        for number, block in enumerate(self.blocks):
            if isinstance(block.mlp, MoE):
                expert_init = "apart" if self.moe is None else self.moe.expert_init
                initialise_experts(block.mlp, mode or self.weight_init_mode, expert_init)
                if isinstance(block.mlp.router, BalancedRouter):
                    block.mlp.router.reset_balance()
                if self.fix_init:
                    fix_init(block.mlp, number, shared=True)

    def fix_init_weight(self) -> None:
        with torch.no_grad():
            for number, block in enumerate(self.blocks):
                scale = math.sqrt(2 * (number + 1))
                block.attn.proj.weight.div_(scale)
                if not isinstance(block.mlp, MoE):
                    block.mlp.fc2.weight.div_(scale)

    def no_weight_decay(self) -> set[str]:
        """timm's set, and the experts' biases and norms. These are stacked vectors, which timm would take for
        matrices."""
        return super().no_weight_decay() | stacked_vectors(self)

    def _pos_embed(self, x: Tensor) -> Tensor:
        if self.pos_embed is not None:
            embedded: Tensor = super()._pos_embed(x)
            return embedded
        if self.sincos_temperature is not None:
            height, width = x.shape[1:3] if self.dynamic_img_size else self.patch_embed.grid_size
            positions = sincos2d(height, width, self.embed_dim, self.sincos_temperature, x.device)
            x = x.flatten(1, -2) + positions.to(x.dtype)
        # timm's method applies no dropout if there is no learned position embedding.
        return self.pos_drop(super()._pos_embed(x))

    def _mask(self) -> Tensor | None:
        """The mask of tokens of `vismoe.condition`.

        **Raises:** ValueError if a part of the network cannot read it.
        """
        mask = self.conditions.current().mask
        if mask is not None and not self.reads_masks:
            given = f"{type(self.patch_embed).__name__.removeprefix('Masked')} and {type(self.blocks[0].attn).__name__}"
            accepted = ", ".join(attention.__name__ for attention in ATTENTION)
            raise ValueError(f"a mask for {given}: accepted are timm's PatchEmbed, and attention of class {accepted}")
        return mask

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """timm's method. With a mask (`vismoe.condition`) the features of padding are 0."""
        mask = self._mask()
        features: Tensor = super().forward_features(x, attn_mask=attn_mask, is_causal=is_causal)
        return features if mask is None else torch.where(rows_of(mask, features)[..., None], features, 0)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        mask = self._mask()
        if mask is None:
            pooled: Tensor = super().pool(x, pool_type)
            return pooled
        chosen = self.global_pool if pool_type is None or self.attn_pool is not None else pool_type
        return masked_pool(self, x, rows_of(mask, x), chosen)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.representation(super().forward_head(x, pre_logits=True))
        return x if pre_logits else self._predict(self.head(x))

    def _predict(self, x: Tensor) -> Tensor:
        if self.predictions == "members":
            return x
        if self.num_classes:
            return mean_logits(x, self.ensemble_size)
        return x.unflatten(0, (-1, self.ensemble_size)).mean(1)

    def forward_intermediates(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
        """timm's method. With a mask (`vismoe.condition`) the features of padding are 0.

        **Raises:** ValueError for an ensemble: some of its blocks have one row per image, others one per member.
        """
        if self.ensemble_size:
            raise ValueError("an ensemble has no intermediate features of single images: call forward_features")
        mask, features = self._mask(), super().forward_intermediates(x, *arguments, **options)
        if mask is None:
            return features
        return zero_features(features, mask, mask[:, self.num_prefix_tokens :])

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        if isinstance(self.head, nn.Linear) and self.head_hidden_size != self.embed_dim:
            weight = self.head.weight
            self.head = nn.Linear(self.head_hidden_size, num_classes, device=weight.device, dtype=weight.dtype)
        self._initialise_head_bias()

    def _initialise_head_bias(self) -> None:
        if self.head_bias_init and isinstance(self.head, nn.Linear):
            nn.init.constant_(self.head.bias, self.head_bias_init)
