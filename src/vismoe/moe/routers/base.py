"""The base of all routers, a module that turns tokens into a routing, and functions that most routers choose by."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..plan import Plan
from ..resident import resident


@dataclass(frozen=True)
class Routing(dict[str, Any]):
    """What a router decided for the tokens of one call. It is also a dictionary of its fields: tools that look at what
    each module returns (torchinfo, …) take tensors and dictionaries, and nothing else.

    - `plan`: who goes where, carried out by a layer's exchange and product.
    - `gates`: the router's weight for every (token, expert) pair, float32, as used (with noise, if there was any).
    - `logits`, `noisy_logits`: what the gates were computed from; the same tensor where there was no noise. Soft
      routing has a logit for each slot, (G, S, E, P).
    - `load`: choices of each expert before any were dropped for capacity; padding is not counted.
    - `mask`: False where a token is padding.
    """

    plan: Plan
    gates: Float[Tensor, "G S E"]
    logits: Float[Tensor, "G S E ..."]
    noisy_logits: Float[Tensor, "G S E ..."]
    load: Int[Tensor, " E"]
    mask: Bool[Tensor, "G S"] | None = None

    def __post_init__(self) -> None:
        fields = dict(vars(self))
        gates = fields.pop("gates")
        self.update(fields, gates=gates)  # last, whose shape torchinfo prints


class Router(nn.Module):
    """Base of all routers: `forward(tokens_GSd, mask_GS) -> Routing`.

    A subclass says in `groups_by_image` whether tokens of one image are routed together when no group size is given
    (otherwise all tokens of the call are), and in `balance` what keeps its experts' load even.
    """

    groups_by_image = False
    balance = "none"

    def __init__(self, dim: int, num_experts: int):
        super().__init__()
        if not (isinstance(dim, int) and isinstance(num_experts, int) and dim >= 1 and num_experts >= 1):
            raise ValueError(
                f"a router needs whole numbers dim ≥ 1 and num_experts ≥ 1, but dim={dim}, num_experts={num_experts}"
            )
        self.dim, self.num_experts = dim, num_experts

    @property
    def experts_per_token(self) -> float:
        """How many experts work on a token, on average, at evaluation."""
        return float(getattr(self, "k", 1))

    def forward(self, tokens_GSd: Float[Tensor, "G S d"], mask_GS: Bool[Tensor, "G S"] | None = None) -> Routing:
        raise NotImplementedError(f"{type(self).__name__} must define forward(tokens, mask) -> Routing")

    def losses(self, routing: Routing) -> dict[str, Float[Tensor, "G ..."]]:
        """Auxiliary losses of a routing by name, one or more values a group; computed only while a `record` block is
        open."""
        return {}

    def metrics(self, routing: Routing) -> dict[str, Tensor]:
        """Further figures of a routing by name; computed only while a `record` block is open."""
        return {}

    def auxiliary_loss(self, losses: dict[str, Float[Tensor, "G ..."]]) -> Float[Tensor, "G ..."] | None:
        """The weighted sum of `losses` that training adds to its own loss; None where this router has none."""
        return None


def check_noise(noise_std: Any) -> float:
    """Raises ValueError unless it is a standard deviation: a finite number ≥ 0."""
    if not (isinstance(noise_std, int | float) and 0 <= noise_std < math.inf):
        raise ValueError(f"noise_std={noise_std}: accepted are numbers ≥ 0")
    return noise_std


def check_k(k: Any, num_experts: int) -> int:
    """Raises ValueError where a token cannot go to `k` experts."""
    if not isinstance(k, int) or not 1 <= k <= num_experts:
        limit = f"there are only num_experts={num_experts}"
        raise ValueError(f"k={k} experts per token, but {limit}: choose a whole number 1 ≤ k ≤ num_experts")
    return k


def draw_router(weight_Ed: Tensor) -> None:
    """LeCun normal, truncated, as the reference's linear layer: logits of unit variance on normalised tokens."""
    # 0.8796 is the standard deviation of a unit normal truncated at ±2.
    std = 1 / (0.87962566 * math.sqrt(weight_Ed.shape[1]))
    nn.init.trunc_normal_(weight_Ed, std=std, a=-2 * std, b=2 * std)


def float32_linear(x: Float[Tensor, "... d"], weight: Float[Tensor, "E d"]) -> Float[Tensor, "... E"]:
    """x · weightᵀ in float32, under autocast too: a choice between experts is sensitive to rounding."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        return F.linear(x.float(), resident(weight, x).float())


# Detached, not under `torch.no_grad()`: torch.export writes that as a graph in a graph, which it cannot read again.
def first_top_k(scores_GSE: Float[Tensor, "G S E"], k: int) -> Int[Tensor, "G S k"]:
    """Indices of the k largest scores, larger first, among equals the first (torch.topk promises no order)."""
    scores_GSE = scores_GSE.detach()
    chosen = [scores_GSE.argmax(-1, keepdim=True)]
    for _ in range(k - 1):
        scores_GSE = scores_GSE.scatter(-1, chosen[-1], -torch.inf)
        chosen.append(scores_GSE.argmax(-1, keepdim=True))
    return torch.cat(chosen, -1)


def largest_first(scores_GES: Float[Tensor, "G E S"], number: int) -> Int[Tensor, "G E C"]:
    """Indices of the largest scores, larger first, among equals the first (torch.topk promises no order)."""
    return scores_GES.detach().sort(dim=-1, descending=True, stable=True).indices[..., :number]
