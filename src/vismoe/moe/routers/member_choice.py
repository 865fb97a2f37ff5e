"""Token choice in an efficient ensemble: each member's tokens choose among the member's own experts (Allingham et al.
2021, *Sparse MoEs meet Efficient Ensembles*, section 4.1).

M is the number of members. A group has one row per token and member; row s belongs to member s mod M.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Routing
from .top_k import TopKRouter


class MemberRouter(TopKRouter):
    """`vismoe.TopKRouter` for ensembles: tokens of member m choose among the experts m·E/M to (m + 1)·E/M − 1.

    The gates of other members' experts are 0 (logits −∞). The noise has standard deviation `noise_std` ÷ (E/M). Losses
    are separate for each member, (G, M). The capacity is that of a group of all members' tokens: S·k·factor/E.

    **Arguments:**

    - `dim`: width of a token.
    - `num_experts`: number of experts of all members, E, a multiple of M.
    - `k`: experts per token, at most E/M; default 1.
    - `members`: number of members M; default 1.
    - `options`: further options of `vismoe.TopKRouter`.

    **Raises:** ValueError if E, or the tokens of a group, are not a multiple of M, and if k is more than E/M.
    """

    def __init__(self, dim: int, num_experts: int, k: int = 1, members: int = 1, **options: Any):
        if not isinstance(members, int) or members < 1 or num_experts % members:
            experts = f"num_experts={num_experts}"
            raise ValueError(
                f"ensemble_size={members}, {experts}: the number of experts must be a multiple of the ensemble size"
            )
        self.members = members
        super().__init__(dim, num_experts, k, **options)

    @property
    def experts_in_reach(self) -> int:
        return self.num_experts // self.members

    def _check_options(self) -> None:
        super()._check_options()
        if self.k > self.experts_in_reach:
            limit = f"each of {self.members} members has only {self.experts_in_reach} of num_experts={self.num_experts}"
            raise ValueError(f"k={self.k} experts per token, but {limit}: choose a smaller k or more experts")

    def compute_logits(self, tokens_GSd: Float[Tensor, "G S d"]) -> Float[Tensor, "G S E"]:
        """The logits; −∞ if expert and token belong to different members."""
        logits, size = super().compute_logits(tokens_GSd), tokens_GSd.shape[1]
        if size % self.members:
            raise ValueError(f"a group of {size} tokens: expected a multiple of {self.members}, the number of members")
        member_S = torch.arange(size, device=logits.device) % self.members
        owner_E = torch.arange(self.num_experts, device=logits.device) // self.experts_in_reach
        return logits.masked_fill(member_S[:, None] != owner_E, -torch.inf)

    def losses(self, routing: Routing) -> dict[str, Float[Tensor, "G M"]]:
        """Those of `vismoe.TopKRouter`, for each member's tokens and experts."""
        gates, logits = self._by_member(routing.gates), self._by_member(routing.logits)
        noisy = logits if routing.noisy_logits is routing.logits else self._by_member(routing.noisy_logits)
        mask = routing.mask
        if mask is not None:
            mask = mask.unflatten(1, (-1, self.members)).mT.flatten(0, 1)
        values = self._losses(gates, logits, noisy, mask)
        return {name: loss.unflatten(0, (-1, self.members)) for name, loss in values.items()}

    def _by_member(self, values_GSE: Tensor) -> Tensor:
        """Makes a separate group of each member's tokens and experts, (G·M, S/M, E/M)."""
        blocks = values_GSE.unflatten(2, (self.members, -1)).unflatten(1, (-1, self.members))
        return blocks.diagonal(dim1=2, dim2=3).permute(0, 3, 1, 2).flatten(0, 1)
