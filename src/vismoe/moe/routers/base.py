"""The base class of routers, the result of routing, and functions that most routers use."""

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
    """The result of a router for the tokens of one call. It is also a dictionary of its fields, because tools that
    inspect the output of each module (torchinfo, …) accept only tensors and dictionaries.

    - `plan`: which token goes to which expert; the layer's exchange and product carry it out.
    - `gates`: the router's weight for every (token, expert) pair, float32; with noise, if there was any.
    - `logits`: the router's logits without noise. Soft routing has one logit per slot, (G, S, E, P).
    - `noisy_logits`: the logits with noise, from which the gates are computed; without noise the same tensor.
    - `load`: number of choices of each expert, before any is dropped; padding is not counted.
    - `mask`: False where a token is padding; None: there is no padding.
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
        self.update(fields, gates=gates)  # last, because torchinfo prints the shape of the last entry


class Router(nn.Module):
    """Base class of routers. A subclass defines `forward(tokens_GSd, mask_GS) -> Routing`.

    **Arguments:**

    - `dim`: width of a token, at least 1.
    - `num_experts`: number of experts E, at least 1.

    **Attributes** that a subclass may set:

    - `groups_by_image`: without a group size, whether a group is the tokens of one image (True) or of the whole call
      (False); default False.
    - `balance`: what keeps the experts' load even: "bias", "loss" or "none"; default "none".

    **Raises:** ValueError for values out of range.
    """

    groups_by_image = False
    balance = "none"

    def __init__(self, dim: int, num_experts: int):
        super().__init__()
        for name, value in (("dim", dim), ("num_experts", num_experts)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value} of a router: accepted are whole numbers ≥ 1")
        self.dim, self.num_experts = dim, num_experts

    @property
    def experts_per_token(self) -> float:
        """Mean number of experts per token at evaluation."""
        return float(getattr(self, "k", 1))

    def forward(self, tokens_GSd: Float[Tensor, "G S d"], mask_GS: Bool[Tensor, "G S"] | None = None) -> Routing:
        raise NotImplementedError(f"{type(self).__name__} must define forward(tokens, mask) -> Routing")

    def losses(self, routing: Routing) -> dict[str, Float[Tensor, "G ..."]]:
        """Auxiliary losses of a routing by name, one or more values per group. Called only for recorded routings."""
        return {}

    def metrics(self, routing: Routing) -> dict[str, Tensor]:
        """Metrics of a routing by name. Called only for recorded routings."""
        return {}

    def auxiliary_loss(self, losses: dict[str, Float[Tensor, "G ..."]]) -> Float[Tensor, "G ..."] | None:
        """The weighted sum of `losses`, to be added to the training loss; None if this router has none."""
        return None


def check_noise(noise_std: Any) -> float:
    """Returns a standard deviation. Raises ValueError unless it is a finite number ≥ 0."""
    if not (isinstance(noise_std, int | float) and 0 <= noise_std < math.inf):
        raise ValueError(f"noise_std={noise_std}: accepted are numbers ≥ 0")
    return noise_std


def check_k(k: Any, num_experts: int) -> int:
    """Returns `k`. Raises ValueError unless it is a whole number from 1 to `num_experts`."""
    if not isinstance(k, int) or not 1 <= k <= num_experts:
        limit = f"there are only num_experts={num_experts}"
        raise ValueError(f"k={k} experts per token, but {limit}: choose a whole number 1 ≤ k ≤ num_experts")
    return k


def draw_router(weight_Ed: Tensor) -> None:
    """Initialises a router's weight: truncated LeCun normal, as in the reference. For normalised tokens the logits have
    variance 1."""
    # 0.8796 is the standard deviation of a unit normal truncated at ±2.
    std = 1 / (0.87962566 * math.sqrt(weight_Ed.shape[1]))
    nn.init.trunc_normal_(weight_Ed, std=std, a=-2 * std, b=2 * std)


def float32_linear(x: Float[Tensor, "... d"], weight: Float[Tensor, "E d"]) -> Float[Tensor, "... E"]:
    """x · weightᵀ in float32, also under autocast: rounding can change the choice of experts."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        return F.linear(x.float(), resident(weight, x).float())


# detach, not `torch.no_grad()`: torch.export makes a nested graph of that, which it cannot read again.
def first_top_k(scores_GSE: Float[Tensor, "G S E"], k: int) -> Int[Tensor, "G S k"]:
    """Indices of the k largest scores, largest first; of equal scores the first index first (torch.topk guarantees no
    order)."""
    scores_GSE = scores_GSE.detach()
    chosen = [scores_GSE.argmax(-1, keepdim=True)]
    for _ in range(k - 1):
        scores_GSE = scores_GSE.scatter(-1, chosen[-1], -torch.inf)
        chosen.append(scores_GSE.argmax(-1, keepdim=True))
    return torch.cat(chosen, -1)


def largest_first(scores_GES: Float[Tensor, "G E S"], number: int) -> Int[Tensor, "G E C"]:
    """Indices of the `number` largest scores, largest first; of equal scores the first index first (torch.topk
    guarantees no order)."""
    return scores_GES.detach().sort(dim=-1, descending=True, stable=True).indices[..., :number]
