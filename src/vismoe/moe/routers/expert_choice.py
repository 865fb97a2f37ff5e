"""Expert choice: every expert chooses the tokens with its largest gates (Zhou et al. 2022, *Mixture-of-Experts with
Expert Choice Routing*)."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..plan import SparsePlan
from .base import Router, Routing, check_noise, draw_router, float32_linear, largest_first
from .capacity import Rounding, check_factor, compute_capacity


class ExpertChoiceRouter(Router):
    """Each expert chooses the C tokens of a group with the largest gates, and weights its outputs by the gates. A gate
    is the softmax over experts of a linear layer, in float32.

    The load is even by construction, so nothing needs to be balanced. A token may be chosen by several experts, or by
    none. An expert's choice depends on the whole group; by default a group is one image, so an image's result does not
    depend on its batch.

    **Arguments:**

    - `dim`: width of a token.
    - `num_experts`: number of experts E.
    - `capacity_factor`: mean number of experts per token: C = tokens of the group · factor / E. Default 1: as many MACs
      as the dense MLP (the paper uses 2).
    - `eval_capacity_factor`: the same at evaluation; default "same".
    - `noise_std`: normal noise with standard deviation `noise_std` / E is added to the logits in training; default 0.
    - `capacity_rounding`: how C is rounded, "ceil" or "round"; default "ceil".
    - `capacity_multiple_of`: C is rounded up to a multiple of this; default 4.

    **Raises:** ValueError for values out of range.
    """

    groups_by_image = True

    def __init__(
        self,
        dim: int,
        num_experts: int,
        capacity_factor: float = 1.0,
        eval_capacity_factor: float | Literal["same"] = "same",
        noise_std: float = 0.0,
        capacity_rounding: Rounding = "ceil",
        capacity_multiple_of: int = 4,
    ):
        super().__init__(dim, num_experts)
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor = capacity_factor if eval_capacity_factor == "same" else eval_capacity_factor
        for name in ("capacity_factor", "eval_capacity_factor"):
            check_factor(name, getattr(self, name))
        compute_capacity(num_experts, num_experts, 1.0, capacity_rounding, capacity_multiple_of)
        self.capacity_rounding, self.capacity_multiple_of = capacity_rounding, capacity_multiple_of
        self.noise_std = check_noise(noise_std)
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises the weight as `vismoe.TopKRouter` does."""
        draw_router(self.weight)

    @property
    def experts_per_token(self) -> float:
        return float(min(self.eval_capacity_factor, self.num_experts))

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.num_experts}, capacity_factor={self.capacity_factor}"

    def forward(self, tokens_GSd: Float[Tensor, "G S d"], mask_GS: Bool[Tensor, "G S"] | None = None) -> Routing:
        """Routes the tokens of each group. `mask_GS`: False where a token is padding, which no expert chooses."""
        logits = noisy = float32_linear(tokens_GSd, self.weight)
        if self.training and self.noise_std > 0:
            noisy = logits + self.noise_std / self.num_experts * torch.randn_like(logits)
        gates = noisy.softmax(-1)
        size = tokens_GSd.shape[1]
        score_GES, live_GEC = gates.mT, None
        if mask_GS is not None:
            score_GES = torch.where(mask_GS[:, None], score_GES, -1)
        token_GEC = largest_first(score_GES, self.capacity(size))
        if mask_GS is not None:
            live_GEC = mask_GS[:, None].expand_as(score_GES).gather(2, token_GEC)
        plan = plan_from_tokens(token_GEC, gates.mT.gather(2, token_GEC), size, live_GEC)
        return Routing(plan, gates, logits, noisy, plan.count, mask_GS)

    def capacity(self, group_size: int) -> int:
        """Number of tokens that each expert chooses from a group of `group_size` tokens (including padding), in the
        current mode."""
        if group_size == 0:
            return 0
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        rounding = self.capacity_rounding, self.capacity_multiple_of
        return min(compute_capacity(group_size, self.num_experts, factor, *rounding), group_size)

    def metrics(self, routing: Routing) -> dict[str, Float[Tensor, " G"]]:
        """Metrics of each group, with the reference's names: num_experts_per_item_min and _max, min_selected_gate and
        max_selected_gate, and the fraction of tokens that at least 1, 2, 4, … and E experts chose. Padding counts as
        tokens that no expert chose."""
        plan, (groups, size, num_experts) = routing.plan, routing.gates.shape
        assert isinstance(plan, SparsePlan)
        live = torch.arange(len(plan.token), device=plan.token.device) < plan.count.sum()
        takers = plan.count.new_zeros(groups * size).index_add(0, plan.token, live.long()).view(groups, size)
        group, weight = plan.token // max(size, 1), plan.weight.detach()
        smallest = weight.new_full((groups,), torch.inf)
        values = {
            "num_experts_per_item_min": takers.amin(1),
            "num_experts_per_item_max": takers.amax(1),
            "min_selected_gate": smallest.scatter_reduce(0, group, weight.where(live, torch.inf), "amin"),
            "max_selected_gate": (-smallest).scatter_reduce(0, group, weight.where(live, -torch.inf), "amax"),
        }
        powers = (2**power for power in range(int(math.log2(num_experts)) + 1))
        for least in dict.fromkeys([*powers, num_experts]):
            share = (takers >= least).float().mean(1)
            values[f"ratio_processed_items_by_at_least_{least}_experts"] = share
        return {name: value.float() for name, value in values.items()}


def plan_from_tokens(
    token_GEC: Int[Tensor, "G E C"],
    weight_GEC: Float[Tensor, "G E C"],
    group_size: int,
    live_GEC: Bool[Tensor, "G E C"] | None = None,
) -> SparsePlan:
    """Makes the plan of experts that each chose C tokens of every group.

    **Arguments:**

    - `token_GEC`: the tokens' numbers within the group.
    - `weight_GEC`: their combine weights.
    - `group_size`: number of tokens of a group.
    - `live_GEC`: False where the token is padding; default None: there is no padding.

    **Returns:** a plan of R = G·E·C rows; the rows of one expert are in the order of the groups, then in the given
    order.
    """
    groups, num_experts, capacity = token_GEC.shape
    offset = torch.arange(groups, device=token_GEC.device) * group_size
    token, weight = ((token_GEC + offset[:, None, None]).transpose(0, 1), weight_GEC.transpose(0, 1))
    token, weight = token.reshape(-1), weight.reshape(-1)
    count = torch.full((num_experts,), groups * capacity, device=token.device)
    if live_GEC is not None:
        live, index = live_GEC.transpose(0, 1), torch.arange(len(token), device=token.device)
        count, live = live.sum((1, 2)), live.reshape(-1)
        order = torch.where(live, index, index + len(token)).sort().indices
        token, weight = token.gather(0, order), torch.where(live, weight, 0).gather(0, order)
    return SparsePlan(token, weight, count, None, groups * group_size, groups * capacity)
