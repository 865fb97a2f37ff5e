"""How many tokens an expert accepts, and which."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Rounding = Literal["ceil", "round"]


def compute_capacity(
    num_choices: int, num_experts: int, factor: float, rounding: Rounding = "ceil", multiple_of: int = 4
) -> int:
    """Number of tokens that one expert accepts from one group: choices · factor / E, rounded, then rounded up to a
    multiple.

    The defaults are the reference's (google-research/vmoe, `compute_capacity`).

    **Arguments:**

    - `num_choices`: number of tokens of the group, including padding, times k.
    - `num_experts`: number of experts E.
    - `factor`: capacity factor, above 0; 1 is enough for an even load.
    - `rounding`: "ceil", or "round" (half to even); default "ceil".
    - `multiple_of`: the capacity is rounded up to a multiple of this; default 4.

    **Returns:** the capacity, at least 1.

    **Raises:** ValueError for values out of range, and if the capacity would be less than 1.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"a capacity factor of {factor!r}: accepted are positive numbers")
    if rounding not in ("ceil", "round"):
        raise ValueError(f'rounding={rounding!r} of a capacity: accepted are "ceil" and "round"')
    if not isinstance(multiple_of, int) or multiple_of < 1:
        raise ValueError(f"multiple_of={multiple_of!r} of a capacity: accepted are whole numbers ≥ 1")
    exact = num_choices * factor / num_experts
    capacity = math.ceil(exact) if rounding == "ceil" else round(exact)
    if capacity < 1:
        raise ValueError(
            f"capacity_factor={factor} gives each of {num_experts} experts a capacity of {capacity} "
            f"for {num_choices} choices; it must be at least 1: use a larger factor or larger groups"
        )
    return capacity + -capacity % multiple_of


def check_factor(name: str, factor: Any, or_none: bool = False) -> None:
    """Raises ValueError unless `factor` is a capacity factor: a positive number, or with `or_none` also "none"."""
    if or_none and factor == "none":
        return
    if isinstance(factor, bool) or not (isinstance(factor, int | float) and 0 < factor < math.inf):
        accepted = '"none" and positive numbers' if or_none else "positive numbers"
        raise ValueError(f"{name}={factor!r}: accepted are {accepted}")


def claim_capacity(
    expert_GSk: Int[Tensor, "G S k"],
    num_experts: int,
    capacity: int,
    priority_GS: Float[Tensor, "G S"] | None = None,
) -> Bool[Tensor, "G S k"]:
    """Decides which choices are kept if an expert accepts `capacity` tokens per group.

    All first choices come before any second choice; then the larger priority comes first, then the earlier token
    (Riquelme et al. 2021, section 2.4 and Algorithm 1; with `priority_GS`, Algorithm 2: Batch Priority Routing).

    **Arguments:**

    - `expert_GSk`: the chosen experts; E for a choice that was already dropped or masked: it is not kept.
    - `num_experts`: number of experts E.
    - `capacity`: number of tokens that an expert accepts from each group.
    - `priority_GS`: priority of each token; default None: the order of the tokens.

    **Returns:** (G, S, k) bool, whether each choice is kept.
    """
    groups, size, k = expert_GSk.shape
    claims = size * k
    rank_GS = torch.arange(size, device=expert_GSk.device).expand(groups, size)
    if priority_GS is not None:
        by_priority = priority_GS.sort(dim=1, descending=True, stable=True).indices
        rank_GS = torch.empty_like(by_priority).scatter(1, by_priority, rank_GS)
    round_k = torch.arange(k, device=expert_GSk.device) * size
    key = (expert_GSk * claims + rank_GS[:, :, None] + round_k).view(groups, claims)
    sorted_key, order = key.sort(dim=1)
    sorted_expert = sorted_key // claims
    count_GE = (expert_GSk.reshape(groups, claims, 1) == torch.arange(num_experts, device=key.device)).sum(1)
    # One more column for choices without an expert, which come last.
    start = torch.cat([torch.zeros_like(count_GE[:, :1]), count_GE.cumsum(1)], dim=1)
    position = torch.arange(claims, device=key.device) - start.gather(1, sorted_expert)
    kept = (position < capacity) & (sorted_expert < num_experts)
    return torch.empty_like(kept).scatter(1, order, kept).view(groups, size, k)
