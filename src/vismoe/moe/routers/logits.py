"""What routers choose by: logits of a linear map, and the largest of them."""

import math
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


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
        return F.linear(x.float(), weight.float())


@torch.no_grad()
def first_top_k(scores_GSE: Float[Tensor, "G S E"], k: int) -> Int[Tensor, "G S k"]:
    """Indices of the k largest scores, larger first, among equals the first (torch.topk promises no order)."""
    chosen = [scores_GSE.argmax(-1, keepdim=True)]
    for _ in range(k - 1):
        scores_GSE = scores_GSE.scatter(-1, chosen[-1], -torch.inf)
        chosen.append(scores_GSE.argmax(-1, keepdim=True))
    return torch.cat(chosen, -1)


@torch.no_grad()
def largest_first(scores_GES: Float[Tensor, "G E S"], number: int) -> Int[Tensor, "G E C"]:
    """Indices of the largest scores, larger first, among equals the first (torch.topk promises no order)."""
    return scores_GES.sort(dim=-1, descending=True, stable=True).indices[..., :number]
