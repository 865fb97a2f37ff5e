"""Token choice: every token goes to the k experts with its largest gates (Shazeer et al. 2017; Fedus et al. 2021)."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..plan import count_experts, plan_from_choices
from . import losses
from .balancing import BalancedRouter, BalanceRule
from .base import Routing, check_k, check_noise, draw_router, first_top_k, float32_linear
from .capacity import Rounding, check_factor, claim_capacity, compute_capacity

PAPER_LOSSES = {"importance": 0.005, "load": 0.005}


class TopKRouter(BalancedRouter):
    """Sends each token to its k best experts, weighted by its gates: softmax over experts of a linear map, in float32.

    **Arguments:**

    - `dim`: width of a token.
    - `num_experts`: E.
    - `k`: experts per token; default 1.
    - `balance`: "bias", loss-free, needs nothing from the training loop; "loss", auxiliary losses that the loop adds
      from `vismoe.record`; "none". Default "bias".
    - `combine`: how the k gates weigh the experts' outputs: "gate", as they are (Riquelme et al. 2021); "renormalized",
      divided by their sum, for k ≥ 2; "unit", 1 each: the network's loss then teaches the router nothing (its gradient
      is 0), balance and auxiliary losses alone move choices. Default "gate".
    - `noise_std`: standard deviation, times 1/E, of normal noise on the logits while training; default 0 (the paper's
      is 1.0).
    - `capacity_factor`: an expert accepts tokens · k · factor / E of a group, the rest is dropped; default "none":
      nothing is dropped.
    - `eval_capacity_factor`: the same at evaluation; default "same".
    - `batch_priority`: whether tokens with a larger first gate claim capacity first (Batch Priority Routing), not
      earlier tokens; default False.
    - `capacity_rounding`, `capacity_multiple_of`: see `vismoe.moe.compute_capacity`.
    - `loss_weights`: weights of auxiliary losses by name: importance, load (while there is noise), gshard, z. Default:
      the paper's, importance and load 0.005 each, for balance="loss"; none otherwise.
    - `balance_rule`: how a bias moves, "log", "sign" or "z-score" (docs/balancing.md); default "log".

    **Raises:** ValueError for options that contradict each other or lie outside their range.
    """

    LOSSES: tuple[str, ...] = ("importance", "load", "gshard", "z")

    def __init__(
        self,
        dim: int,
        num_experts: int,
        k: int = 1,
        balance: Literal["bias", "loss", "none"] = "bias",
        combine: Literal["gate", "renormalized", "unit"] = "gate",
        noise_std: float = 0.0,
        capacity_factor: float | Literal["none"] = "none",
        eval_capacity_factor: float | Literal["same", "none"] = "same",
        batch_priority: bool = False,
        capacity_rounding: Rounding = "ceil",
        capacity_multiple_of: int = 4,
        loss_weights: Mapping[str, float] | None = None,
        balance_rule: BalanceRule = "log",
    ):
        super().__init__(dim, num_experts, balance, balance_rule)
        if loss_weights is None:
            loss_weights = PAPER_LOSSES if balance == "loss" else {}
        self.k, self.combine, self.noise_std = k, combine, noise_std
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor = capacity_factor if eval_capacity_factor == "same" else eval_capacity_factor
        self.batch_priority = batch_priority
        self.capacity_rounding, self.capacity_multiple_of = capacity_rounding, capacity_multiple_of
        self.loss_weights = dict(loss_weights)
        self._check_options()
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        self.reset_parameters()

    def _check_options(self) -> None:
        check_k(self.k, self.num_experts)
        if self.combine not in ("gate", "renormalized", "unit"):
            raise ValueError(f'combine={self.combine!r}: accepted are "gate", "renormalized" and "unit"')
        if self.combine == "renormalized" and self.k == 1:
            why = "is a constant 1 and gives the router no gradient"
            raise ValueError(f'combine="renormalized" with k=1 {why}: use "unit", which is 1 too, or "gate"')
        check_noise(self.noise_std)
        for name in ("capacity_factor", "eval_capacity_factor"):
            check_factor(name, getattr(self, name), or_none=True)
        compute_capacity(self.num_experts, self.num_experts, 1.0, self.capacity_rounding, self.capacity_multiple_of)
        if set(self.loss_weights) - set(self.LOSSES) or any(
            not (isinstance(weight, int | float) and 0 <= weight < math.inf) for weight in self.loss_weights.values()
        ):
            raise ValueError(f"loss_weights={self.loss_weights}: accepted are weights ≥ 0 for {', '.join(self.LOSSES)}")
        if self.balance == "loss" and not any(self.loss_weights.values()):
            raise ValueError('balance="loss" needs a positive weight in loss_weights; or use balance="none"')

    def reset_parameters(self) -> None:
        """As the reference's linear layer."""
        draw_router(self.weight)

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.num_experts}, k={self.k}, balance={self.balance!r}, combine={self.combine!r}"

    @property
    def experts_in_reach(self) -> int:
        """Number of experts that a token chooses among."""
        return self.num_experts

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise on the logits while training."""
        return self.noise_std / self.experts_in_reach

    def compute_logits(self, tokens_GSd: Float[Tensor, "G S d"]) -> Float[Tensor, "G S E"]:
        """The logits of the gates, without noise."""
        return float32_linear(tokens_GSd, self.weight)

    def compute_gates(self, logits_GSE: Float[Tensor, "G S E"]) -> Float[Tensor, "G S E"]:
        """The weight of every (token, expert) pair."""
        return logits_GSE.softmax(-1)

    def forward(self, tokens_GSd: Float[Tensor, "G S d"], mask_GS: Bool[Tensor, "G S"] | None = None) -> Routing:
        """Routes each group's tokens; where `mask_GS` is False a token is padding and goes nowhere."""
        logits = self.compute_logits(tokens_GSd)
        noisy = logits
        if self.training and self.noise_std > 0:
            noisy = logits + self.noise_scale * torch.randn_like(logits)
        gates = self.compute_gates(noisy)
        counting = self.is_counting()
        bias = self.choice_bias(counting)
        expert = first_top_k(gates if bias is None else noisy + bias, self.k)
        weight = self._combine_weights(gates.gather(-1, expert))
        if mask_GS is not None:
            expert = torch.where(mask_GS[..., None], expert, self.num_experts)
        load = count_experts(expert, self.num_experts)
        if counting:
            self.count_choices(load)
        capacity = self.capacity(tokens_GSd.shape[1])
        if capacity is not None:
            priority = gates.detach().amax(-1) if self.batch_priority else None
            kept = claim_capacity(expert, self.num_experts, capacity, priority)
            expert = torch.where(kept, expert, self.num_experts)
            capacity *= tokens_GSd.shape[0]
        plan = plan_from_choices(expert, weight, self.num_experts, capacity)
        return Routing(plan, gates, logits, noisy, load, mask_GS)

    def capacity(self, group_size: int) -> int | None:
        """Tokens of a group of `group_size` that one expert accepts in the present mode; None: all."""
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        if isinstance(factor, str) or group_size == 0:
            return None
        capacity = compute_capacity(
            group_size * self.k, self.num_experts, factor, self.capacity_rounding, self.capacity_multiple_of
        )
        return min(capacity, group_size)

    def _combine_weights(self, gates_GSk: Float[Tensor, "G S k"]) -> Float[Tensor, "G S k"]:
        if self.combine == "renormalized":
            # Sigmoids of far negative logits are 0, all of a token's at once; DeepSeek-V3's code has this floor too.
            return gates_GSk / gates_GSk.sum(-1, keepdim=True).clamp_min(1e-20)
        if self.combine == "unit":
            # A gradient of 0, not none: DistributedDataParallel waits for one of every parameter. Straight-through ones
            # (that of the gate's logarithm, to tokens and router or to the router alone) made upcycled networks worse.
            return 1 + 0 * gates_GSk
        return gates_GSk

    def losses(self, routing: Routing) -> dict[str, Float[Tensor, "G ..."]]:
        """importance, gshard, z and, where there was noise, load. Importance sums gates without noise, gshard with."""
        return self._losses(routing.gates, routing.logits, routing.noisy_logits, routing.mask)

    def _losses(self, gates: Tensor, logits: Tensor, noisy: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        values = {
            "importance": losses.importance_loss(self.compute_gates(logits), mask),
            "gshard": losses.gshard_loss(gates, mask),
            "z": losses.z_loss(logits, mask),
        }
        if noisy is not logits:
            values["load"] = losses.load_loss(logits, noisy, self.k, self.noise_scale, mask)
        return values

    def auxiliary_loss(self, losses: dict[str, Float[Tensor, "G ..."]]) -> Float[Tensor, "G ..."] | None:
        """Σ weight · loss; a loss that this pass could not give (load without noise) adds nothing."""
        terms = [weight * losses[name] for name, weight in self.loss_weights.items() if weight > 0 and name in losses]
        return torch.stack(terms).sum(0) if terms else None
