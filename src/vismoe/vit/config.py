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
    """The sparse part of a network. `config.json` has it as its `moe` object; `create_model` takes its fields as
    overrides.

    **Arguments:**

    - `moe_layers`: the sparse blocks: "every-N" (every N-th block), "last-N" (the last N of the odd blocks 1, 3, 5, …),
      or block numbers from 0, as a list or as "1,3"; default "every-2".
    - `num_experts`: number of experts per layer, E; default 8.
    - `experts_per_token`: k; default 1.
    - `experts`: "full": each expert is an MLP; "low-rank": one frozen MLP, and a low-rank difference per expert;
      default "full".
    - `expert_hidden_dim`: hidden width of a full expert; default 0: that of the replaced MLP.
    - `expert_dropout`: dropout of a full expert, 0 to 1; default "same": that of the replaced MLP.
    - `expert_init`: initial weights of full experts: "apart": each its own; "alike": equal within a layer, as in the
      paper's upstream models (the reference's split_rngs=False); default "apart".
    - `rank`: rank of the low-rank differences; default 16.
    - `shared`: whether a layer has, besides the experts, an MLP that all tokens use; default False.
    - `shared_hidden_dim`: hidden width of a new shared MLP; default 0: the replaced MLP itself is shared.
    - `router`: a name in `vismoe.moe.ROUTERS`; default "top-k".
    - `balance`, `balance_rule`, `combine`, `capacity_factor`, `eval_capacity_factor`, `capacity_rounding`,
      `capacity_multiple_of`, `batch_priority`, `noise_std`, `loss_weights`, `slots_per_expert`: options of the router,
      see `vismoe.TopKRouter`, `vismoe.ExpertChoiceRouter` and `vismoe.SoftRouter`. For a soft router in a network,
      `capacity_factor` may be given instead of `slots_per_expert`: slots = factor × tokens of a group ÷ E.
    - `ensemble_size`: number of members M of an efficient ensemble, E³ (Allingham et al. 2021). They share the trunk up
      to the first sparse layer; each has E/M experts of its own (`vismoe.moe.MemberRouter`). Default 0: no ensemble.
    - `group_size`: number of tokens that are routed together, see `vismoe.MoE`; default "none".
    - `bfloat16_exchange`: see `vismoe.MoE`; default False.
    - `block_list`: path of the list of blocks, if a network has several; default "": the only one.

    **Raises:** ValueError for values out of range, and for options that contradict each other. An option that the
    router does not have is an error when the network is built.
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
            raise ValueError(f'experts="low-rank" keep the whole MLP: {", ".join(full)} are only for experts="full"')

    def blocks(self, depth: int) -> list[int]:
        """Numbers, from 0, of the blocks that become sparse in a network of `depth` blocks.

        **Raises:** ValueError if `moe_layers` has another form, or names blocks that do not exist.
        """
        layers = self.moe_layers
        if isinstance(layers, str) and re.fullmatch(r"\d+(,\d+)*", layers):
            layers = [int(number) for number in layers.split(",")]
        if not isinstance(layers, str):
            blocks = sorted({int(block) for block in layers})
            if not blocks or blocks[0] < 0 or blocks[-1] >= depth:
                raise ValueError(f"moe_layers={self.moe_layers!r}: accepted are block numbers 0 to {depth - 1}")
            return blocks
        match = re.fullmatch(r"(every|last)-([1-9]\d*)", layers)
        if match is None:
            raise ValueError(
                f'moe_layers={layers!r}: accepted are "every-N", "last-N" and block numbers from 0, as in "1,3"'
            )
        number = int(match[2])
        chosen = range(number - 1, depth, number) if match[1] == "every" else range(1, depth, 2)[-number:]
        if not chosen or (match[1] == "last" and len(chosen) < number):
            raise ValueError(f"moe_layers={self.moe_layers!r} asks for more than the {depth} blocks have")
        return list(chosen)

    def layer(self, mlp: MLP) -> MoE:
        """The sparse layer that replaces `mlp`, with newly drawn router and experts."""
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
        """Returns a copy with other values. If the router changes, its options get its own defaults, except the
        ensemble size and, if the new router has this option, the number of experts per token."""
        new = replace(self, **overrides)
        if new.router == self.router:
            return new
        kept = {"ensemble_size", *overrides, *(["experts_per_token"] if new.router_has("k") else [])}
        defaults: dict[str, Any] = {field.name: field.default for field in fields(self)}
        return replace(new, **{name: defaults[name] for name in set(ROUTER_FIELDS) - kept})

    def router_has(self, option: str) -> bool:
        """Whether this kind of router has an option."""
        return option in signature(ROUTERS[self.router]).parameters or (self.router, option) == ("top-k", "members")

    def _router_options(self) -> dict[str, Any]:
        """The router's options that differ from their defaults.

        **Raises:** ValueError for an option that this kind of router does not have.
        """
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name in ROUTER_FIELDS}
        defaults = {field.name: field.default for field in fields(self)}
        options = {name: value for name, value in options.items() if value != defaults[name]}
        if unknown := [name for name in options if not self.router_has(ROUTER_FIELDS[name])]:
            listed = ", ".join(f"{name}={options[name]!r}" for name in unknown)
            raise ValueError(f"{listed}: no option of router={self.router!r}")
        return {ROUTER_FIELDS[name]: value for name, value in options.items()}


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
"""Fields of the configuration that are options of routers, with the routers' names for them. The defaults are those of
the routers, except for `ensemble_size`: ensembles have another router class."""
OVERRIDES = tuple(field.name for field in fields(MoEConfig))
