"""Which MLPs of a vision transformer become sparse, and into what."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

import torch
from timm.layers import Mlp
from timm.models import named_apply
from timm.models.vision_transformer import get_init_weights_vit
from torch import nn

from vismoe.moe import MLPExperts, MoE, TopKRouter

ROUTERS = {"top-k": TopKRouter}


@dataclass(frozen=True)
class MoEConfig:
    """The sparse part of a network: `config.json` keeps it as its `moe` object, its fields are overrides.

    - `moe_layers`: "every-N" (each N-th block), "last-N" (the last N of the odd blocks 1, 3, 5, …), or a list of block
      numbers from 0.
    - `num_experts`, `experts_per_token`; `expert_hidden_dim`: each expert's, 0 for the replaced MLP's.
    - `router`: "top-k". `balance`, `combine`, `capacity_factor`, `eval_capacity_factor`, `capacity_rounding`,
      `capacity_multiple_of`, `batch_priority`, `noise_std`, `loss_weights`: see `vismoe.TopKRouter`.
    - `group_size`: see `vismoe.MoE`.
    """

    moe_layers: str | Sequence[int] = "every-2"
    num_experts: int = 8
    experts_per_token: int = 1
    expert_hidden_dim: int = 0
    router: str = "top-k"
    balance: Literal["bias", "loss", "none"] = "bias"
    combine: Literal["gate", "renormalized", "unit"] = "gate"
    capacity_factor: float | Literal["none"] = "none"
    eval_capacity_factor: float | Literal["same", "none"] = "same"
    capacity_rounding: Literal["ceil", "round"] = "ceil"
    capacity_multiple_of: int = 4
    batch_priority: bool = False
    noise_std: float = 0.0
    loss_weights: dict[str, float] | None = None
    group_size: int | Literal["none"] = "none"

    def __post_init__(self) -> None:
        if self.router not in ROUTERS:
            raise ValueError(f"router={self.router!r}: accepted are {', '.join(map(repr, ROUTERS))}")

    def blocks(self, depth: int) -> list[int]:
        """Numbers, from 0, of the blocks of `depth` that become sparse.

        **Raises:** ValueError where `moe_layers` cannot be read or asks for blocks that are not there.
        """
        if not isinstance(self.moe_layers, str):
            blocks = sorted({int(block) for block in self.moe_layers})
            if not blocks or blocks[0] < 0 or blocks[-1] >= depth:
                raise ValueError(f"moe_layers={list(self.moe_layers)}: accepted are block numbers 0 to {depth - 1}")
            return blocks
        match = re.fullmatch(r"(every|last)-([1-9]\d*)", self.moe_layers)
        if match is None:
            raise ValueError(
                f'moe_layers={self.moe_layers!r}: accepted are "every-N", "last-N" or a list of block numbers'
            )
        number = int(match[2])
        chosen = range(number - 1, depth, number) if match[1] == "every" else range(1, depth, 2)[-number:]
        if not chosen or (match[1] == "last" and len(chosen) < number):
            raise ValueError(f"moe_layers={self.moe_layers!r} asks for more than the {depth} blocks have")
        return list(chosen)

    def layer(self, mlp: nn.Module) -> MoE:
        """The sparse layer that takes the place of `mlp`.

        **Raises:** ValueError for an MLP of another structure than timm's plain one.
        """
        if not isinstance(mlp, Mlp) or type(mlp) is not Mlp:
            raise ValueError(f"mlp_layer={type(mlp).__name__}: accepted is Mlp, which experts can take the place of")
        dim = mlp.fc1.in_features
        router = ROUTERS[self.router](
            dim,
            self.num_experts,
            k=self.experts_per_token,
            balance=self.balance,
            combine=self.combine,
            noise_std=self.noise_std,
            capacity_factor=self.capacity_factor,
            eval_capacity_factor=self.eval_capacity_factor,
            batch_priority=self.batch_priority,
            capacity_rounding=self.capacity_rounding,
            capacity_multiple_of=self.capacity_multiple_of,
            loss_weights=self.loss_weights,
        )
        experts = MLPExperts(
            dim,
            self.expert_hidden_dim or mlp.fc1.out_features,
            self.num_experts,
            activation=mlp.act,
            bias=mlp.fc1.bias is not None,
            norm=not isinstance(mlp.norm, nn.Identity),
            dropout=mlp.drop1.p,
        )
        return MoE(router, experts, group_size=self.group_size)


OVERRIDES = tuple(field.name for field in fields(MoEConfig))


def sparsify(model: Any, config: MoEConfig) -> None:
    """Replaces, in a timm VisionTransformer, the MLPs that `config` names, by experts initialised as those MLPs are."""
    for number in config.blocks(len(model.blocks)):
        block = model.blocks[number]
        if not hasattr(block, "mlp"):
            raise ValueError(f"block_fn={type(block).__name__}: accepted are blocks with an MLP of their own, as Block")
        layer = config.layer(block.mlp)
        initialise_experts(cast(MLPExperts, layer.experts), model.weight_init_mode)
        block.mlp = layer.to(block.mlp.fc1.weight)
        if model.fix_init:
            fix_init(layer, number)


@torch.no_grad()
def initialise_experts(experts: MLPExperts, mode: str) -> None:
    """Draws each expert as timm's scheme `mode` draws a dense MLP, so that twins differ in nothing else."""
    weight = experts.up.weight
    if weight.is_meta:
        return
    bias = experts.up.bias is not None
    drawn = Mlp(experts.dim, experts.hidden_dim, bias=bias, device=weight.device, dtype=weight.dtype)
    initialise = get_init_weights_vit(mode)
    for number in range(experts.num_experts):
        named_apply(initialise, drawn, name="mlp")
        for stacked, linear in ((experts.up, drawn.fc1), (experts.down, drawn.fc2)):
            stacked.weight[number] = linear.weight
            if stacked.bias is not None:
                stacked.bias[number] = linear.bias


@torch.no_grad()
def fix_init(layer: MoE, number: int) -> None:
    """What timm's `fix_init` does to the MLP of block `number`: less weight to later layers' outputs."""
    cast(MLPExperts, layer.experts).down.weight.div_(math.sqrt(2 * (number + 1)))
