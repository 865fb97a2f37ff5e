"""The result of routing: which token goes to which expert, with which weight. Data only."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SparsePlan:
    """Rows = (token, expert) pairs, sorted by expert. Their number R is static.

    Pairs that were dropped (capacity) or masked (padding) come after the last expert's rows, with weight 0. They are
    not in `count`: only the first `count.sum()` rows are live.

    - `token`: the token of each row.
    - `weight`: the combine weight of each row.
    - `count`: number of live rows of each expert.
    - `inverse`: the k rows of each token, so that combining is a gather (deterministic on every device); None if tokens
      have different numbers of rows.
    - `num_tokens`: number of tokens N.
    - `capacity`: a static upper bound of `count`; None: there is none.
    """

    token: Int[Tensor, " R"]
    weight: Float[Tensor, " R"]
    count: Int[Tensor, " E"]
    inverse: Int[Tensor, "N k"] | None
    num_tokens: int
    capacity: int | None = None


@dataclass(frozen=True)
class SoftPlan:
    """The result of soft routing: each slot of an expert gets a weighted mean of its group's tokens, and each token
    gets a weighted mean of all slots' outputs.

    - `dispatch`: weight of each token in each slot.
    - `combine`: weight of each slot's output for each token.
    - `count`: number of rows of each expert, G·P.
    - `num_tokens`: number of tokens N.
    """

    dispatch: Float[Tensor, "G S E P"]
    combine: Float[Tensor, "G S E P"]
    count: Int[Tensor, " E"]
    num_tokens: int


Plan = SparsePlan | SoftPlan


def plan_from_choices(
    expert_GSk: Int[Tensor, "G S k"],
    weight_GSk: Float[Tensor, "G S k"],
    num_experts: int,
    capacity: int | None = None,
) -> SparsePlan:
    """Sorts the k choices of every token by expert.

    **Arguments:**

    - `expert_GSk`: the chosen experts; E for a choice that was dropped or masked.
    - `weight_GSk`: their combine weights.
    - `num_experts`: number of experts E.
    - `capacity`: the plan's static bound; default None: none.

    **Returns:** a plan of R = G·S·k rows; the rows of one expert are in the order of their tokens.
    """
    groups, size, k = expert_GSk.shape
    rows = groups * size * k
    expert, index = expert_GSk.reshape(rows), torch.arange(rows, device=expert_GSk.device)
    # Unique integer keys make a stable sort, which cannot be exported to ONNX, unnecessary.
    order = (expert * rows + index).sort().indices
    live = expert < num_experts
    weight = torch.where(live, weight_GSk.reshape(rows), 0)
    return SparsePlan(
        token=order // k,
        weight=weight.gather(0, order),
        count=count_experts(expert, num_experts),
        inverse=torch.empty_like(order).scatter(0, order, index).view(groups * size, k),
        num_tokens=groups * size,
        capacity=capacity,
    )


def count_experts(expert: Int[Tensor, "..."], num_experts: int) -> Int[Tensor, " E"]:
    """Counts how often each of E experts was chosen. Numbers from E on (dropped choices) are not counted."""
    # Not bincount, which synchronises with the device.
    experts = torch.arange(num_experts, device=expert.device)
    return (expert.reshape(-1, 1) == experts).sum(0)
