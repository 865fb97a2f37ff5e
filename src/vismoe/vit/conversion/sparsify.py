"""Makes a new network sparse: experts get initial weights like those of the MLPs that they replace."""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from timm.layers import Mlp
from timm.models import named_apply
from timm.models.vision_transformer import get_init_weights_vit

from vismoe.moe import MLP, MLPExperts, MoE, compute_capacity, read_mlp

from ..config import MoEConfig
from .places import replace_mlp


def sparsify(model: Any, config: MoEConfig) -> None:
    """Replaces the MLPs that `config` names by sparse layers, whose experts are initialised like the MLPs.

    **Arguments:**

    - `model`: a timm VisionTransformer, changed in place.
    - `config`: which MLPs, and how.

    **Raises:** ValueError for MLPs of other classes than timm's `Mlp`.
    """
    if config.router == "soft" and not isinstance(config.capacity_factor, str):
        if config.slots_per_expert != 1:
            given = f"slots_per_expert={config.slots_per_expert}, capacity_factor={config.capacity_factor}"
            raise ValueError(f"{given}: both set the number of slots per expert: give one of them")
        tokens = model.patch_embed.num_patches + model.num_prefix_tokens
        tokens = tokens if isinstance(config.group_size, str) else config.group_size
        slots = compute_capacity(tokens, config.num_experts, config.capacity_factor, "round", 1)
        config = replace(config, slots_per_expert=slots, capacity_factor="none")
    for number in config.blocks(len(model.blocks)):
        block = model.blocks[number]
        if not hasattr(block, "mlp"):
            raise ValueError(f"block_fn={type(block).__name__}: accepted are blocks that have an MLP, such as Block")
        if type(block.mlp) is not Mlp:
            raise ValueError(f"mlp_layer={type(block.mlp).__name__}: accepted is Mlp")
        layer = config.layer(read_mlp(block.mlp))
        initialise_experts(layer, model.weight_init_mode, config.expert_init)
        if config.shared_hidden_dim and layer.shared is not None:
            named_apply(get_init_weights_vit(model.weight_init_mode), layer.shared, name="mlp")
        replace_mlp(model, f"blocks.{number}.mlp", layer)
        if model.fix_init:
            fix_init(layer, number, shared=config.shared_hidden_dim > 0)


@torch.no_grad()
def initialise_experts(layer: MoE, mode: str, expert_init: Literal["apart", "alike"]) -> None:
    """Initialises experts as timm initialises a dense MLP. Low-rank experts are not changed.

    **Arguments:**

    - `layer`: the sparse layer, changed in place.
    - `mode`: timm's name of the initialisation scheme.
    - `expert_init`: "apart": each expert is drawn; "alike": one is drawn and copied.
    """
    experts = layer.experts
    if not isinstance(experts, MLPExperts) or experts.up.weight.is_meta:
        return
    weight = experts.up.weight
    bias = experts.up.bias is not None
    drawn = Mlp(experts.dim, experts.hidden_dim, bias=bias, device=weight.device, dtype=weight.dtype)
    initialise = get_init_weights_vit(mode)
    for number in range(experts.num_experts):
        if expert_init == "apart" or number == 0:
            named_apply(initialise, drawn, name="mlp")
        for stacked, linear in ((experts.up, drawn.fc1), (experts.down, drawn.fc2)):
            stacked.weight[number] = linear.weight
            if stacked.bias is not None:
                stacked.bias[number] = linear.bias


@torch.no_grad()
def fix_init(layer: MoE, number: int, shared: bool) -> None:
    """Scales down the last layer of a block's experts, as timm's `fix_init` does for its MLP.

    **Arguments:**

    - `layer`: the sparse layer, changed in place.
    - `number`: number of the block, from 0.
    - `shared`: whether the shared MLP is scaled too.
    """
    if isinstance(layer.experts, MLPExperts):
        layer.experts.down.weight.div_(math.sqrt(2 * (number + 1)))
    if shared and isinstance(layer.shared, MLP):
        layer.shared.down.weight.div_(math.sqrt(2 * (number + 1)))
