"""Which MLPs of a transformer become sparse, and into what."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from inspect import signature
from typing import Any, Literal

import torch
from torch import nn

from vismoe.moe import MLP, ROUTERS, LowRankExperts, MLPExperts, MoE, kind_of


@dataclass(frozen=True)
class MoEConfig:
    """The sparse part of a network: `config.json` keeps it as its `moe` object, its fields are overrides.

    - `moe_layers`: "every-N" (each N-th block), "last-N" (the last N of the odd blocks 1, 3, 5, …), or a list of block
      numbers from 0.
    - `num_experts`, `experts_per_token`; `experts`: "full", an MLP each, or "low-rank", of a frozen MLP and low-rank
      differences; `expert_hidden_dim`: a full expert's, 0 for the replaced MLP's; `expert_dropout`: a full expert's
      share, "same" for the replaced MLP's; `expert_init`: how full experts are drawn, "apart", or "alike", all of a
      layer equal, as the paper's upstream models began (the reference's split_rngs=False); `rank`: a difference's;
      `shared`: whether the MLP that was there stays, beside the experts, for every token.
    - `router`: "top-k" (`vismoe.TopKRouter`), "hash", "random" (`vismoe.HashRouter`, `vismoe.RandomRouter`: controls
      that learn nothing). `balance`, `combine`, `capacity_factor`, `eval_capacity_factor`, `capacity_rounding`,
      `capacity_multiple_of`, `batch_priority`, `noise_std`, `loss_weights`: see `vismoe.TopKRouter`.
    - `group_size`: see `vismoe.MoE`. `block_list`: path of the list of blocks, in networks with several.
    """

    moe_layers: str | Sequence[int] = "every-2"
    num_experts: int = 8
    experts_per_token: int = 1
    experts: Literal["full", "low-rank"] = "full"
    expert_hidden_dim: int = 0
    expert_dropout: float | Literal["same"] = "same"
    expert_init: Literal["apart", "alike"] = "apart"
    rank: int = 16
    shared: bool = False
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
    block_list: str = ""

    def __post_init__(self) -> None:
        if self.router not in ROUTERS:
            raise ValueError(f"router={self.router!r}: accepted are {', '.join(map(repr, ROUTERS))}")
        if self.experts not in ("full", "low-rank"):
            raise ValueError(f'experts={self.experts!r}: accepted are "full" and "low-rank"')
        if self.expert_init not in ("apart", "alike"):
            raise ValueError(f'expert_init={self.expert_init!r}: accepted are "apart" and "alike"')
        full = {"shared": False, "expert_hidden_dim": 0, "expert_dropout": "same", "expert_init": "apart"}
        if self.experts == "low-rank" and any(getattr(self, name) != default for name, default in full.items()):
            raise ValueError(f'experts="low-rank" hold the whole MLP already: {", ".join(full)} are for experts="full"')

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

    def layer(self, mlp: MLP) -> MoE:
        """The sparse layer that takes the place of `mlp`: its router and experts as they are drawn by themselves."""
        router = ROUTERS[self.router](mlp.dim, self.num_experts, **self._router_options())
        experts: nn.Module = (
            LowRankExperts(mlp, self.num_experts, self.rank) if self.experts == "low-rank" else self._full_experts(mlp)
        )
        layer = MoE(router, experts, shared=mlp if self.shared else None, group_size=self.group_size)
        return layer.to(mlp.up.weight).train(mlp.training)

    def _full_experts(self, mlp: MLP) -> MLPExperts:
        kind = kind_of(mlp)
        if self.expert_dropout != "same":
            kind["dropout"] = self.expert_dropout
        experts = MLPExperts(mlp.dim, self.expert_hidden_dim or mlp.hidden_dim, self.num_experts, **kind)
        if self.expert_init == "alike":
            with torch.no_grad():
                for stacked in experts.parameters():
                    stacked.copy_(stacked[:1].expand_as(stacked).clone())
        return experts

    def router_has(self, option: str) -> bool:
        """Whether the kind of router has such an option."""
        return option in signature(ROUTERS[self.router]).parameters

    def _router_options(self) -> dict[str, Any]:
        """What of the configuration is for its router; what another kind of router has, and was changed, is refused."""
        options = {"k": self.experts_per_token} | {name: getattr(self, name) for name in ROUTER_FIELDS}
        defaults = {field.name: field.default for field in fields(self)}
        if idle := [name for name in ROUTER_FIELDS if not self.router_has(name) and options[name] != defaults[name]]:
            told = ", ".join(f"{name}={options[name]!r}" for name in idle)
            raise ValueError(f"{told}: no option of router={self.router!r}")
        return {name: value for name, value in options.items() if self.router_has(name)}


ROUTER_FIELDS = (
    "balance",
    "combine",
    "noise_std",
    "capacity_factor",
    "eval_capacity_factor",
    "batch_priority",
    "capacity_rounding",
    "capacity_multiple_of",
    "loss_weights",
)
"""Fields of the configuration that are, under the same names, options of routers."""
OVERRIDES = tuple(field.name for field in fields(MoEConfig))
