"""Token choice: each token goes to the k experts with its largest gates (Shazeer et al. 2017; Fedus et al. 2021)."""

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
    """Sends each token to the k experts with its largest gates. Gates are the softmax over experts of a linear layer,
    in float32.

    **Arguments:**

    - `dim`: width of a token.
    - `num_experts`: number of experts E.
    - `k`: experts per token; default 1.
    - `balance`: what keeps the experts' load even; default "bias".
        - "bias": a bias on the choice; needs nothing from the training loop (docs/balancing.md).
        - "loss": auxiliary losses, which the training loop must add: `vismoe.record` returns them.
        - "none": nothing.
    - `combine`: weights of the k experts' outputs; default "gate".
        - "gate": the gates (Riquelme et al. 2021).
        - "renormalized": the gates divided by their sum; for k ≥ 2.
        - "unit": 1. The task's loss then has gradient 0 for the router: only balancing changes its choices.
    - `noise_std`: normal noise with standard deviation `noise_std` / E is added to the logits in training; default 0
      (the paper uses 1.0).
    - `capacity_factor`: an expert accepts tokens · k · factor / E tokens of a group and drops the rest; default "none":
      no token is dropped.
    - `eval_capacity_factor`: the same at evaluation; default "same".
    - `batch_priority`: whether tokens with larger gates claim capacity first (Batch Priority Routing); default False:
      earlier tokens do.
    - `capacity_rounding`: how the capacity is rounded, "ceil" or "round"; default "ceil".
    - `capacity_multiple_of`: the capacity is rounded up to a multiple of this; default 4.
    - `loss_weights`: weights of auxiliary losses by name: importance, load (only with noise), gshard, z. Default with
      balance="loss": importance and load 0.005 each, as in the paper; otherwise none.
    - `balance_rule`: how the bias moves: "log", "sign" or "z-score" (docs/balancing.md); default "log".

    **Raises:** ValueError for values out of range, and for options that contradict each other.
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
            why = "is always 1, so the router gets no gradient"
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
        """Initialises the weight as in the reference."""
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
        """The gate of every (token, expert) pair."""
        return logits_GSE.softmax(-1)

    def forward(self, tokens_GSd: Float[Tensor, "G S d"], mask_GS: Bool[Tensor, "G S"] | None = None) -> Routing:
        """Routes the tokens of each group. `mask_GS`: False where a token is padding, which is not routed."""
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
        """Number of tokens that one expert accepts from a group of `group_size` tokens in the current mode; None:
        all."""
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        if isinstance(factor, str) or group_size == 0:
            return None
        capacity = compute_capacity(
            group_size * self.k, self.num_experts, factor, self.capacity_rounding, self.capacity_multiple_of
        )
        return min(capacity, group_size)

    def _combine_weights(self, gates_GSk: Float[Tensor, "G S k"]) -> Float[Tensor, "G S k"]:
        if self.combine == "renormalized":
            # All sigmoids of a token may be 0 if its logits are very negative; DeepSeek-V3's code has this minimum too.
            return gates_GSk / gates_GSk.sum(-1, keepdim=True).clamp_min(1e-20)
        if self.combine == "unit":
            # A gradient of 0, not None: DistributedDataParallel waits for a gradient of every parameter.
            # Straight-through gradients (of the gate's logarithm) made upcycled networks worse.
            return 1 + 0 * gates_GSk
        return gates_GSk

    def losses(self, routing: Routing) -> dict[str, Float[Tensor, "G ..."]]:
        """The losses importance, gshard, z and, with noise, load. Importance uses gates without noise, gshard gates
        with noise."""
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
        """Σ weight · loss, over the losses that this forward has (there is no load loss without noise)."""
        terms = [weight * losses[name] for name, weight in self.loss_weights.items() if weight > 0 and name in losses]
        return torch.stack(terms).sum(0) if terms else None
