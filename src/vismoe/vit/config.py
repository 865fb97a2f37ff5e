"""Which MLPs of a transformer become sparse, and into what."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from inspect import signature
from typing import Any, Literal

import torch
from torch import nn

from vismoe.moe import MLP, ROUTERS, LowRankExperts, MemberMoE, MemberRouter, MLPExperts, MoE, kind_of


@dataclass(frozen=True)
class MoEConfig:
    """The sparse part of a network: `config.json` keeps it as its `moe` object, its fields are overrides.

    - `moe_layers`: "every-N" (each N-th block), "last-N" (the last N of the odd blocks 1, 3, 5, …), or block numbers
      from 0, as a list or as "1,3".
    - `num_experts`, `experts_per_token`; `experts`: "full", an MLP each, or "low-rank", of a frozen MLP and low-rank
      differences; `expert_hidden_dim`: a full expert's, 0 for the replaced MLP's; `expert_dropout`: a full expert's
      share, "same" for the replaced MLP's; `expert_init`: how full experts are drawn, "apart", or "alike", all of a
      layer equal, as the paper's upstream models began (the reference's split_rngs=False); `rank`: a difference's;
      `shared`: whether there is an MLP for every token beside the experts, the one that was there, or, where
      `shared_hidden_dim` is not 0, a new one of that hidden width.
    - `router`: one of `vismoe.moe.ROUTERS`, by its name there.
      Options of routers, refused by those that have none such: `balance`, `balance_rule`, `combine`,
      `capacity_factor`, `eval_capacity_factor`, `capacity_rounding`, `capacity_multiple_of`, `batch_priority`,
      `noise_std`, `loss_weights`, `slots_per_expert`. Of a soft router built with a network, `capacity_factor`
      stands, in place of `slots_per_expert`, for as many slots as factor × a group's tokens ÷ experts.
    - `ensemble_size`: M members of an efficient ensemble, E³ (Allingham et al. 2021), which share the trunk up to the
      first sparse layer and own E/M experts each (`vismoe.moe.MemberRouter`); 0: no ensemble.
    - `group_size`, `bfloat16_exchange`: see `vismoe.MoE`. `block_list`: path of the list of blocks, in networks with
      several.
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
    shared_hidden_dim: int = 0
    router: str = "top-k"
    balance: Literal["bias", "loss", "none"] = "bias"
    balance_rule: Literal["log", "sign", "z-score"] = "log"
    combine: Literal["gate", "renormalized", "unit"] = "gate"
    capacity_factor: float | Literal["none"] = "none"
    eval_capacity_factor: float | Literal["same", "none"] = "same"
    capacity_rounding: Literal["ceil", "round"] = "ceil"
    capacity_multiple_of: int = 4
    batch_priority: bool = False
    noise_std: float = 0.0
    loss_weights: dict[str, float] | None = None
    slots_per_expert: int = 1
    ensemble_size: int = 0
    group_size: int | Literal["none"] = "none"
    bfloat16_exchange: bool = False
    block_list: str = ""

    def __post_init__(self) -> None:
        if self.router not in ROUTERS:
            raise ValueError(f"router={self.router!r}: accepted are {', '.join(map(repr, ROUTERS))}")
        if not isinstance(self.ensemble_size, int) or self.ensemble_size < 0:
            raise ValueError(f"ensemble_size={self.ensemble_size!r}: accepted are whole numbers, 0 for no ensemble")
        if self.experts not in ("full", "low-rank"):
            raise ValueError(f'experts={self.experts!r}: accepted are "full" and "low-rank"')
        if self.expert_init not in ("apart", "alike"):
            raise ValueError(f'expert_init={self.expert_init!r}: accepted are "apart" and "alike"')
        if self.shared_hidden_dim < 0 or (self.shared_hidden_dim and not self.shared):
            why = "accepted are widths ≥ 0, and with shared=True"
            raise ValueError(f"shared_hidden_dim={self.shared_hidden_dim}, shared={self.shared}: {why}")
        full = {"shared": False, "expert_hidden_dim": 0, "expert_dropout": "same", "expert_init": "apart"}
        if self.experts == "low-rank" and any(getattr(self, name) != default for name, default in full.items()):
            raise ValueError(f'experts="low-rank" hold the whole MLP already: {", ".join(full)} are for experts="full"')

    def blocks(self, depth: int) -> list[int]:
        """Numbers, from 0, of the blocks of `depth` that become sparse.

        **Raises:** ValueError where `moe_layers` cannot be read or asks for blocks that are not there.
        """
        listed = self.moe_layers
        if isinstance(listed, str) and re.fullmatch(r"\d+(,\d+)*", listed):
            listed = [int(number) for number in listed.split(",")]
        if not isinstance(listed, str):
            blocks = sorted({int(block) for block in listed})
            if not blocks or blocks[0] < 0 or blocks[-1] >= depth:
                raise ValueError(f"moe_layers={self.moe_layers!r}: accepted are block numbers 0 to {depth - 1}")
            return blocks
        match = re.fullmatch(r"(every|last)-([1-9]\d*)", listed)
        if match is None:
            raise ValueError(
                f'moe_layers={listed!r}: accepted are "every-N", "last-N" and block numbers from 0, as in "1,3"'
            )
        number = int(match[2])
        chosen = range(number - 1, depth, number) if match[1] == "every" else range(1, depth, 2)[-number:]
        if not chosen or (match[1] == "last" and len(chosen) < number):
            raise ValueError(f"moe_layers={self.moe_layers!r} asks for more than the {depth} blocks have")
        return list(chosen)

    def layer(self, mlp: MLP) -> MoE:
        """The sparse layer that takes the place of `mlp`: its router and experts as they are drawn by themselves."""
        options = self._router_options()
        router = (MemberRouter if self.ensemble_size else ROUTERS[self.router])(mlp.dim, self.num_experts, **options)
        experts: nn.Module = (
            LowRankExperts(mlp, self.num_experts, self.rank) if self.experts == "low-rank" else self._full_experts(mlp)
        )
        layer = (MemberMoE if self.ensemble_size else MoE)(
            router,
            experts,
            shared=self._shared(mlp),
            group_size=self.group_size,
            bfloat16_exchange=self.bfloat16_exchange,
        )
        return layer.to(mlp.up.weight).train(mlp.training)

    def _shared(self, mlp: MLP) -> MLP | None:
        if self.shared_hidden_dim:
            return MLP(mlp.dim, self.shared_hidden_dim, **kind_of(mlp))
        return mlp if self.shared else None

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

    def changed(self, overrides: Mapping[str, Any]) -> "MoEConfig":
        """The configuration with other values. Another router begins with its own defaults, but for as many experts a
        token, where it chooses these, and for the size of an ensemble, which it may refuse."""
        new = replace(self, **overrides)
        if new.router == self.router:
            return new
        kept = {"ensemble_size", *overrides, *(["experts_per_token"] if new.router_has("k") else [])}
        defaults: dict[str, Any] = {field.name: field.default for field in fields(self)}
        return replace(new, **{name: defaults[name] for name in set(ROUTER_FIELDS) - kept})

    def router_has(self, option: str) -> bool:
        """Whether the kind of router has such an option."""
        return option in signature(ROUTERS[self.router]).parameters or (self.router, option) == ("top-k", "members")

    def _router_options(self) -> dict[str, Any]:
        """What of the configuration is for its router, where it is not what it is by default; what only another kind
        of router has is refused."""
        said = {field.name: getattr(self, field.name) for field in fields(self) if field.name in ROUTER_FIELDS}
        defaults = {field.name: field.default for field in fields(self)}
        said = {name: value for name, value in said.items() if value != defaults[name]}
        if idle := [name for name in said if not self.router_has(ROUTER_FIELDS[name])]:
            told = ", ".join(f"{name}={said[name]!r}" for name in idle)
            raise ValueError(f"{told}: no option of router={self.router!r}")
        return {ROUTER_FIELDS[name]: value for name, value in said.items()}


ROUTER_FIELDS = {"experts_per_token": "k", "ensemble_size": "members"} | {
    name: name
    for name in (
        "balance",
        "balance_rule",
        "combine",
        "noise_std",
        "capacity_factor",
        "eval_capacity_factor",
        "batch_priority",
        "capacity_rounding",
        "capacity_multiple_of",
        "loss_weights",
        "slots_per_expert",
    )
}
"""Fields of the configuration that are options of routers, and what they are called there. Each has the default that
routers give it, but `ensemble_size`: without one it is another router."""
OVERRIDES = tuple(field.name for field in fields(MoEConfig))
