"""Routers that learn nothing: controls that show how much a learned router adds."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ..plan import count_experts, plan_from_choices
from .balancing import BalancedRouter
from .base import Router, Routing, check_k, first_top_k, float32_linear


class HashRouter(BalancedRouter):
    """Sends each token to the nearest k of E random directions, drawn once: memory without a learned router.

    A locality-sensitive hash of a token's content: near tokens share experts (Charikar 2002). Roller et al. 2021 (*Hash
    Layers*) hash the number of a word, which patches do not have. The k outputs are averaged; no gradient passes
    through the choice.

    **Arguments:**

    - `dim`: width of a token.
    - `num_experts`: E.
    - `k`: experts per token; default 1.
    - `balance`: "bias", loss-free, moved while training as in `vismoe.TopKRouter`, or "none"; default "bias".

    **Raises:** ValueError for options outside their range.
    """

    weight: Tensor

    def __init__(self, dim: int, num_experts: int, k: int = 1, balance: str = "bias"):
        super().__init__(dim, num_experts, balance)
        if balance == "loss":
            raise ValueError('balance="loss": a router that learns nothing has no losses: use "bias" or "none"')
        self.k = check_k(k, num_experts)
        self._frozen = False
        self.register_buffer("weight", torch.empty(num_experts, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the directions, uniformly on the sphere."""
        self.weight.copy_(F.normalize(torch.randn_like(self.weight)))

    @property
    def is_frozen(self) -> bool:
        return self._frozen

    def requires_grad_(self, requires_grad: bool = True) -> "HashRouter":
        """With False, balancing stops too, which no parameter could tell it. `requires_grad_` of a whole network does
        not call this method: its layers' `freeze_router()` does."""
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
    """Sends each token to k experts drawn anew in every training pass (Zuo et al. 2022, *Stochastic Experts*).

    The k outputs are averaged. Evaluation draws nothing: there the s-th token of a group, which is an image by default,
    goes to experts s, s + 1, …, modulo E.

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
    """The routing of choices with equal weights."""
    k, num_experts = expert_GSk.shape[2], logits_GSE.shape[2]
    gates = torch.zeros_like(logits_GSE).scatter(2, expert_GSk, 1 / k)
    if mask_GS is not None:
        expert_GSk = torch.where(mask_GS[..., None], expert_GSk, num_experts)
    plan = plan_from_choices(expert_GSk, torch.full(expert_GSk.shape, 1 / k, device=gates.device), num_experts)
    return Routing(plan, gates, logits_GSE, logits_GSE, count_experts(expert_GSk, num_experts), mask_GS)
