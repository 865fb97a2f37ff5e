"""Auxiliary losses that keep experts evenly loaded, each of one group's tokens: (G, S, E) -> (G,).

`mask_GS` is False for padding, which takes no part. All are 0 or at their minimum at a perfectly even load, with
a zero, never NaN, gradient there: squared variation is computed from the variance, not from a standard deviation.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Mask = Bool[Tensor, "G S"] | None


def importance_loss(gates_GSE: Float[Tensor, "G S E"], mask_GS: Mask = None) -> Float[Tensor, " G"]:
    """Squared coefficient of variation over experts of the summed gates (Riquelme et al. 2021, appendix A.2, eq. 8)."""
    return _squared_variation(_mean_over_tokens(gates_GSE, mask_GS))


def load_loss(
    logits_GSE: Float[Tensor, "G S E"],
    noisy_logits_GSE: Float[Tensor, "G S E"],
    k: int,
    noise_scale: float,
    mask_GS: Mask = None,
) -> Float[Tensor, " G"]:
    """Squared coefficient of variation over experts of a smooth estimate of load: the probability that, were the noise
    drawn afresh, the expert would stay among the token's k largest noisy logits (Riquelme et al. 2021, appendix A.2,
    eq. 9–11).

    `noise_scale`: standard deviation of the noise on the logits.
    """
    threshold = noisy_logits_GSE.topk(k, dim=-1).values[..., -1:]
    needed = (threshold - logits_GSE) / noise_scale
    probability = 0.5 * torch.erfc(needed / math.sqrt(2))
    return _squared_variation(_mean_over_tokens(probability, mask_GS))


def gshard_loss(gates_GSE: Float[Tensor, "G S E"], mask_GS: Mask = None) -> Float[Tensor, " G"]:
    """E · Σ over experts of mean gate × share of first choices (Lepikhin et al. 2020, Algorithm 1; Fedus et al. 2021,
    eq. 4). 1, its minimum, at an even load; only the gates carry gradient."""
    num_experts = gates_GSE.shape[-1]
    first = F.one_hot(gates_GSE.argmax(-1), num_experts).to(gates_GSE.dtype)
    mean_gate, share = _mean_over_tokens(gates_GSE, mask_GS), _mean_over_tokens(first, mask_GS)
    return num_experts * (mean_gate * share).sum(-1)


def z_loss(logits_GSE: Float[Tensor, "G S E"], mask_GS: Mask = None) -> Float[Tensor, " G"]:
    """Mean over tokens of the squared log-sum-exp of the logits: keeps them small (Zoph et al. 2022, eq. 5)."""
    return _mean_over_tokens(logits_GSE.logsumexp(-1, keepdim=True).square(), mask_GS)[:, 0]


def _mean_over_tokens(values_GSE: Tensor, mask_GS: Mask) -> Tensor:
    if mask_GS is None:
        return values_GSE.sum(1) / max(values_GSE.shape[1], 1)  # A group without tokens has 0, not NaN.
    live = torch.where(mask_GS[..., None], values_GSE, 0)
    return live.sum(1) / mask_GS.sum(1, keepdim=True).clamp_min(1)


def _squared_variation(values_GE: Tensor) -> Tensor:
    # The floor is far below any real mean: it only keeps a group that is all padding at 0 instead of 0/0.
    return values_GE.var(-1, correction=0) / values_GE.mean(-1).square().clamp_min(1e-30)
