"""Routers that do not learn: controls that show how much a learned router adds."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ..plan import count_experts, plan_from_choices
from .balancing import BalancedRouter
from .base import Router, Routing, check_k, first_top_k, float32_linear


class HashRouter(BalancedRouter):
    """Each expert has a fixed random direction; a token goes to the k experts with the nearest directions.

    This is a locality-sensitive hash of a token's content (Charikar 2002): similar tokens go to the same experts.
    Roller et al. 2021 (*Hash Layers*) hash the numbers of words, which patches do not have. The k outputs are averaged,
    and the choice has no gradient.

    **Arguments:**

    - `dim`: width of a token.
    - `num_experts`: number of experts E.
    - `k`: experts per token; default 1.
    - `balance`: "bias": loss-free, as in `vismoe.TopKRouter`; or "none"; default "bias".

    **Raises:** ValueError for values out of range.
    """

    weight: Tensor

    def __init__(self, dim: int, num_experts: int, k: int = 1, balance: str = "bias"):
        super().__init__(dim, num_experts, balance)
        if balance == "loss":
            raise ValueError('balance="loss": this router does not learn, so it has no losses: use "bias" or "none"')
        self.k = check_k(k, num_experts)
        self._frozen = False
        self.register_buffer("weight", torch.empty(num_experts, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the directions uniformly on the unit sphere."""
        self.weight.copy_(F.normalize(torch.randn_like(self.weight)))

    @property
    def is_frozen(self) -> bool:
        return self._frozen

    def requires_grad_(self, requires_grad: bool = True) -> "HashRouter":
        """With False, balancing stops too; this router has no parameter that could be frozen. `requires_grad_` of a
        whole network does not call this method, but `MoE.freeze_router()` does."""
        self._frozen = not requires_grad
        return super().requires_grad_(requires_grad)

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.num_experts}, k={self.k}, balance={self.balance!r}"

    def forward(self, tokens_GSd: Float[Tensor, "G S d"], mask_GS: Bool[Tensor, "G S"] | None = None) -> Routing:
        """Routes each token by itself; where `mask_GS` is False a token is padding and goes nowhere."""
        logits = float32_linear(tokens_GSd.detach(), self.weight)
        counting = self.is_counting()
        bias = self.choice_bias(counting)
        routing = even_routing(first_top_k(logits if bias is None else logits + bias, self.k), logits, mask_GS)
        if counting:
            self.count_choices(routing.load)
        return routing


class RandomRouter(Router):
    """In training, each token goes to k random experts, drawn again in every forward (Zuo et al. 2022, *Stochastic
    Experts*). The k outputs are averaged.

    Evaluation is deterministic: the s-th token of a group goes to the experts s, s + 1, …, modulo E. A group is an
    image by default.

    **Arguments:**

    - `dim`: width of a token.
    - `num_experts`: number of experts E.
    - `k`: experts per token; default 1.

    **Raises:** ValueError for a k outside 1…E.
    """

    groups_by_image = True

    def __init__(self, dim: int, num_experts: int, k: int = 1):
        super().__init__(dim, num_experts)
        self.k = check_k(k, num_experts)

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.num_experts}, k={self.k}"

    def forward(self, tokens_GSd: Float[Tensor, "G S d"], mask_GS: Bool[Tensor, "G S"] | None = None) -> Routing:
        """Routes each token by itself; where `mask_GS` is False a token is padding and goes nowhere."""
        groups, size, _ = tokens_GSd.shape
        experts = torch.arange(self.num_experts, device=tokens_GSd.device)
        if self.training:
            logits = torch.rand(groups, size, self.num_experts, device=tokens_GSd.device)
        else:
            position = torch.arange(size, device=tokens_GSd.device)
            distance = (experts - position[:, None]) % self.num_experts
            logits = (-distance.float()).expand(groups, size, self.num_experts)
        return even_routing(first_top_k(logits, self.k), logits, mask_GS)


def even_routing(
    expert_GSk: Tensor, logits_GSE: Float[Tensor, "G S E"], mask_GS: Bool[Tensor, "G S"] | None
) -> Routing:
    """Makes the routing of choices that all have weight 1/k."""
    k, num_experts = expert_GSk.shape[2], logits_GSE.shape[2]
    gates = torch.zeros_like(logits_GSE).scatter(2, expert_GSk, 1 / k)
    if mask_GS is not None:
        expert_GSk = torch.where(mask_GS[..., None], expert_GSk, num_experts)
    plan = plan_from_choices(expert_GSk, torch.full(expert_GSk.shape, 1 / k, device=gates.device), num_experts)
    return Routing(plan, gates, logits_GSE, logits_GSE, count_experts(expert_GSk, num_experts), mask_GS)
