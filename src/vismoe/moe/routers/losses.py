"""Auxiliary losses that keep the experts' load even. Each returns one value per group: (G, S, E) -> (G,).

`mask_GS` is False for padding, which is not counted. At a perfectly even load all are at their minimum, with gradient
0, not NaN: the squared variation is computed from the variance, not from the standard deviation.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Mask = Bool[Tensor, "G S"] | None


def importance_loss(gates_GSE: Float[Tensor, "G S E"], mask_GS: Mask = None) -> Float[Tensor, " G"]:
    """Squared coefficient of variation, over experts, of the summed gates (Riquelme et al. 2021, appendix A.2,
    eq. 8)."""
    return _squared_variation(_mean_over_tokens(gates_GSE, mask_GS))


def load_loss(
    logits_GSE: Float[Tensor, "G S E"],
    noisy_logits_GSE: Float[Tensor, "G S E"],
    k: int,
    noise_scale: float,
    mask_GS: Mask = None,
) -> Float[Tensor, " G"]:
    """Squared coefficient of variation, over experts, of a smooth estimate of the load: the probability that an expert
    is among a token's k largest noisy logits if its noise is drawn again (Riquelme et al. 2021, appendix A.2, eq.
    9–11).

    **Arguments:**

    - `logits_GSE`, `noisy_logits_GSE`: logits without and with noise.
    - `k`: experts per token.
    - `noise_scale`: standard deviation of the noise on the logits.
    - `mask_GS`: False where a token is padding; default None: no padding.
    """
    threshold = noisy_logits_GSE.topk(k, dim=-1).values[..., -1:]
    needed = (threshold - logits_GSE) / noise_scale
    probability = 0.5 * torch.erfc(needed / math.sqrt(2))
    return _squared_variation(_mean_over_tokens(probability, mask_GS))


def gshard_loss(gates_GSE: Float[Tensor, "G S E"], mask_GS: Mask = None) -> Float[Tensor, " G"]:
    """E · Σ over experts of (mean gate × fraction of first choices) (Lepikhin et al. 2020, Algorithm 1; Fedus et al.
    2021, eq. 4). The minimum is 1, at an even load. Only the gates have a gradient."""
    num_experts = gates_GSE.shape[-1]
    first = F.one_hot(gates_GSE.argmax(-1), num_experts).to(gates_GSE.dtype)
    mean_gate, share = _mean_over_tokens(gates_GSE, mask_GS), _mean_over_tokens(first, mask_GS)
    return num_experts * (mean_gate * share).sum(-1)


def z_loss(logits_GSE: Float[Tensor, "G S E"], mask_GS: Mask = None) -> Float[Tensor, " G"]:
    """Mean over tokens of the squared log-sum-exp of the logits; it keeps them small (Zoph et al. 2022, eq. 5)."""
    return _mean_over_tokens(logits_GSE.logsumexp(-1, keepdim=True).square(), mask_GS)[:, 0]


def _mean_over_tokens(values_GSE: Tensor, mask_GS: Mask) -> Tensor:
    if mask_GS is None:
        return values_GSE.sum(1) / max(values_GSE.shape[1], 1)  # 0, not NaN, for a group without tokens
    live = torch.where(mask_GS[..., None], values_GSE, 0)
    return live.sum(1) / mask_GS.sum(1, keepdim=True).clamp_min(1)


def _squared_variation(values_GE: Tensor) -> Tensor:
    # The minimum is far below any real mean. It only avoids 0/0 for a group that is all padding.
    return values_GE.var(-1, correction=0) / values_GE.mean(-1).square().clamp_min(1e-30)
