"""Soft routing: experts process weighted means of tokens, and tokens get weighted means of the outputs (Puigcerver et
al. 2023, *From Sparse to Soft Mixtures of Experts*)."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..plan import SoftPlan
from .base import Router, Routing, check_noise, draw_router, float32_linear


class SoftRouter(Router):
    """Every expert has P slots. A slot's input is a weighted mean of its group's tokens; a token's output is a weighted
    mean of all slots' outputs. Nothing is chosen or dropped, so nothing needs to be balanced.

    The logit of a token and a slot is `scale` times the cosine of the token and the slot's parameter, in float32. Its
    softmax over tokens weights the slots' inputs, its softmax over slots the tokens' outputs (section 2.1 and Algorithm
    1). A group is an image by default.

    **Arguments:**

    - `dim`: width of a token.
    - `num_experts`: number of experts E.
    - `slots_per_expert`: number of slots P; default 1, the best in the paper. If E·P is the number of tokens, the layer
      needs as many MACs as the dense MLP.
    - `noise_std`: standard deviation of normal noise on the logits in training; default 0, as in the paper.

    **Parameters:**

    - `weight`: (E·P, d), one direction per slot, ordered by expert.
    - `scale`: (1,), initially 1. (Earlier versions stored it with shape (), which is still read.)

    **Raises:** ValueError for values out of range.
    """

    groups_by_image = True

    def __init__(self, dim: int, num_experts: int, slots_per_expert: int = 1, noise_std: float = 0.0):
        super().__init__(dim, num_experts)
        if not isinstance(slots_per_expert, int) or slots_per_expert < 1:
            raise ValueError(f"slots_per_expert={slots_per_expert}: accepted are whole numbers ≥ 1")
        self.slots_per_expert, self.noise_std = slots_per_expert, check_noise(noise_std)
        self.weight = nn.Parameter(torch.empty(num_experts * slots_per_expert, dim))
        self.scale = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises the weight as `vismoe.TopKRouter` does (only its rows' directions matter), and the scale to 1."""
        draw_router(self.weight)
        nn.init.ones_(self.scale)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *arguments: Any) -> None:
        scale = state.get(f"{prefix}scale")
        if isinstance(scale, Tensor) and scale.ndim == 0:
            state[f"{prefix}scale"] = scale.view(1)
        super()._load_from_state_dict(state, prefix, *arguments)

    @property
    def experts_per_token(self) -> float:
        return float(self.num_experts)

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.num_experts}, slots_per_expert={self.slots_per_expert}"

    def forward(self, tokens_GSd: Float[Tensor, "G S d"], mask_GS: Bool[Tensor, "G S"] | None = None) -> Routing:
        """Routes the tokens of each group. `mask_GS`: False where a token is padding, which is in no slot."""
        tokens, slots = unit(tokens_GSd), unit(self.weight)
        # The smaller tensor is scaled: this is faster, and rounds as the reference does.
        if tokens.numel() < slots.numel():
            tokens = tokens * self.scale.float()
        else:
            slots = slots * self.scale.float()
        logits = noisy = float32_linear(tokens, slots).unflatten(-1, (self.num_experts, self.slots_per_expert))
        if self.training and self.noise_std > 0:
            noisy = logits + self.noise_std * torch.randn_like(logits)
        dispatch, combine = _softmax_over_tokens(noisy, mask_GS), noisy.flatten(2).softmax(-1).view_as(noisy)
        groups, size = tokens_GSd.shape[:2]
        rows = groups * self.slots_per_expert
        count = torch.full((self.num_experts,), rows, device=logits.device)
        plan = SoftPlan(dispatch, combine, count, groups * size)
        return Routing(plan, combine.sum(-1), logits, noisy, count, mask_GS)

    def metrics(self, routing: Routing) -> dict[str, Float[Tensor, ""]]:
        """Metrics with the reference's names: mean over tokens (slots) of the smallest and the largest combine
        (dispatch) weight; smallest, largest and mean cosine between the combine weights of two tokens, the dispatch
        weights of two slots, and the directions of two slots."""
        plan = routing.plan
        assert isinstance(plan, SoftPlan)
        combine, dispatch = plan.combine.detach().flatten(2), plan.dispatch.detach().flatten(2)
        values = {
            "combine_weights_min_mean": combine.amin(2).mean(),
            "combine_weights_max_mean": combine.amax(2).mean(),
            "dispatch_weights_min_mean": dispatch.amin(1).mean(),
            "dispatch_weights_max_mean": dispatch.amax(1).mean(),
        }
        vectors = {"combine_weights": combine, "dispatch_weights": dispatch.mT, "mu": unit(self.weight.detach())[None]}
        for name, vectors_GNd in vectors.items():
            values |= {
                f"{name}_similarity_{statistic}": value for statistic, value in _similarities(vectors_GNd).items()
            }
        return values


def unit(x: Float[Tensor, "... d"], eps: float = 1e-6) -> Float[Tensor, "... d"]:
    """Normalises vectors to length 1, in float32. Vectors near 0 stay shorter."""
    x = x.float()
    return x * (x.square().sum(-1, keepdim=True) + eps).rsqrt()


def _softmax_over_tokens(logits_GSEP: Tensor, mask_GS: Tensor | None) -> Tensor:
    if mask_GS is None:
        return logits_GSEP.softmax(1)
    live = mask_GS[:, :, None, None]
    # A finite value instead of −∞, so that a group that is all padding gets 0, not NaN.
    return torch.where(live, torch.where(live, logits_GSEP, -1e30).softmax(1), 0)


def _similarities(vectors_GNd: Float[Tensor, "G N d"]) -> dict[str, Float[Tensor, ""]]:
    """Smallest, largest and mean cosine of all pairs of different vectors of a group."""
    vectors, number = unit(vectors_GNd, 1e-9), vectors_GNd.shape[1]
    cosines = (vectors @ vectors.mT).flatten()
    pairs = cosines[~torch.eye(number, dtype=torch.bool, device=cosines.device).repeat(len(vectors), 1, 1).flatten()]
    if not len(pairs):
        return {}
    return {"min": pairs.min(), "max": pairs.max().clamp_min(0), "mean": pairs.mean()}  # the reference's largest is ≥ 0
