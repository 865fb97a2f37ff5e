"""The outcome of routing: who goes where, with which weight. Data only."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SparsePlan:
    """Rows = (token, expert) pairs, sorted by expert; their number R is static.

    Pairs that were dropped (capacity) or masked (padding) stand behind the last expert's rows with weight 0
    and are not in `count`, so the first `count.sum()` rows are the live ones.

    - `token`: the token that each row carries.
    - `weight`: what each row's expert output is multiplied by.
    - `count`: live rows of each expert.
    - `inverse`: the k rows of each token where every token has k rows, so that combining is a gather
      (deterministic on every device); None where tokens have differing numbers of rows.
    - `num_tokens`: N.
    - `capacity`: a bound on `count` known before any token is seen, None where nothing bounds it.
    """

    token: Int[Tensor, " R"]
    weight: Float[Tensor, " R"]
    count: Int[Tensor, " E"]
    inverse: Int[Tensor, "N k"] | None
    num_tokens: int
    capacity: int | None = None


@dataclass(frozen=True)
class SoftPlan:
    """The outcome of soft routing: every slot of an expert takes a mixture of its group's tokens, and every token a
    mixture of all slots' outputs.

    - `dispatch`: what each token adds to each slot; `combine`: what each slot's output adds to each token.
    - `count`: rows, G·P, of each expert; `num_tokens`: N.
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
    """Sorts k choices of every token by expert.

    **Arguments:**

    - `expert_GSk`: the chosen experts; `num_experts` where a choice was dropped or masked.
    - `weight_GSk`: their combine weights.
    - `num_experts`: E.
    - `capacity`: the plan's static bound; default: none.

    **Returns:** a plan of R = G·S·k rows; within an expert rows keep the order of their tokens.
    """
    groups, size, k = expert_GSk.shape
    rows = groups * size * k
    expert, index = expert_GSk.reshape(rows), torch.arange(rows, device=expert_GSk.device)
    # Unique integer keys keep ties in order without a stable sort, which ONNX has no lowering for.
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
    """How often each of E experts was chosen; numbers from E on are not counted."""
    # Not bincount, which waits for the device.
    experts = torch.arange(num_experts, device=expert.device)
    return (expert.reshape(-1, 1) == experts).sum(0)
