"""Routing of whole images: all of an image's tokens go to the same experts (Daxberger et al. 2023, *Mobile V-MoEs:
Scaling Down Vision Transformers via Sparse Mixture-of-Experts*)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..plan import Plan, SparsePlan, count_experts, plan_from_choices
from .balancing import BalanceRule
from .base import Routing
from .top_k import PAPER_LOSSES, TopKRouter

GUIDANCE = 0.3
"""The paper's weight λ of the guidance loss."""


@dataclass(frozen=True, kw_only=True)
class ImageRouting(Routing):
    """A routing of tokens that follows from a routing of images.

    - `image`: the routing of the images: one group with one token per image.
    - `class_group`: each image's group of classes, −1 for none; None if no context was given.
    """

    image: Routing
    class_group: Int[Tensor, " B"] | None


class ImageRouter(TopKRouter):
    """Routes whole images: all tokens of an image go to the k experts with the largest gates of its mean token. So an
    image needs the weights of only k experts per layer.

    **Guidance.** `vismoe.condition(model, context=groups)` passes integers (B,): each image's group of classes, 0 to
    E − 1, or −1 for none. Then there is a loss "guidance", the cross-entropy between the router's logits and the group,
    and each expert specialises in a group of classes that are easily confused. `vismoe.record` returns this loss with
    the other auxiliary losses. The paper uses no other balancing (balance="none").

    **Arguments:**

    - `dim`, `num_experts`, `k`, `balance`, `combine`, `noise_std`, `balance_rule`: as in `vismoe.TopKRouter`, for
      images instead of tokens.
    - `loss_weights`: weights of auxiliary losses by name, including "guidance"; default: the paper's 0.3 for guidance,
      and with balance="loss" also `vismoe.TopKRouter`'s default.

    **Raises:** ValueError for values out of range; `forward` raises it for an invalid context.
    """

    groups_by_image = True
    LOSSES = (*TopKRouter.LOSSES, "guidance")

    def __init__(
        self,
        dim: int,
        num_experts: int,
        k: int = 1,
        balance: Literal["bias", "loss", "none"] = "bias",
        combine: Literal["gate", "renormalized", "unit"] = "gate",
        noise_std: float = 0.0,
        loss_weights: Mapping[str, float] | None = None,
        balance_rule: BalanceRule = "log",
    ):
        if loss_weights is None:
            loss_weights = {"guidance": GUIDANCE} | (PAPER_LOSSES if balance == "loss" else {})
        super().__init__(
            dim, num_experts, k, balance, combine, noise_std, loss_weights=loss_weights, balance_rule=balance_rule
        )

    def forward(
        self,
        tokens_GSd: Float[Tensor, "G S d"],
        mask_GS: Bool[Tensor, "G S"] | None = None,
        context: Any = None,
    ) -> ImageRouting:
        """Routes each group (by default an image) as a whole.

        **Arguments:**

        - `tokens_GSd`: the tokens.
        - `mask_GS`: False where a token is padding, which does not count in the mean; default None: no padding.
        - `context`: integers (G,), each image's group of classes, or −1; default None: no guidance.
        """
        size, group = tokens_GSd.shape[1], self._check_context(context, tokens_GSd)
        if mask_GS is None:
            image = super().forward(tokens_GSd.sum(1, dtype=torch.float32)[None] / max(size, 1))
        else:
            total = tokens_GSd.where(mask_GS[..., None], 0).sum(1, dtype=torch.float32)
            image = super().forward(total[None] / mask_GS.sum(1, keepdim=True).clamp_min(1), mask_GS.any(1)[None])
        expert_Gk, weight_Gk = _choices(image.plan)
        expert = expert_Gk[:, None].expand(-1, size, -1)
        if mask_GS is not None:
            expert = torch.where(mask_GS[..., None], expert, self.num_experts)
        plan = plan_from_choices(expert, weight_Gk[:, None].expand(-1, size, -1), self.num_experts)
        gates, logits, noisy = (
            values[0, :, None].expand(-1, size, -1) for values in (image.gates, image.logits, image.noisy_logits)
        )
        load = count_experts(expert, self.num_experts)
        return ImageRouting(
            plan=plan,
            gates=gates,
            logits=logits,
            noisy_logits=noisy,
            load=load,
            mask=mask_GS,
            image=image,
            class_group=group,
        )

    def losses(self, routing: Routing) -> dict[str, Float[Tensor, " 1"]]:
        """Those of `vismoe.TopKRouter`, over the images of the call; and guidance, if there is a context."""
        assert isinstance(routing, ImageRouting)
        values = super().losses(routing.image)
        if routing.class_group is not None:
            logits, group = routing.image.noisy_logits[0], routing.class_group
            total = F.cross_entropy(logits, group, ignore_index=-1, reduction="sum")
            values["guidance"] = (total / (group >= 0).sum().clamp_min(1))[None]
        return values

    def _check_context(self, context: Any, tokens_GSd: Tensor) -> Tensor | None:
        if context is None:
            return None
        images = len(tokens_GSd)
        expected = (
            f"a group of classes for each of {images} images, integers ({images},) from 0 to {self.num_experts - 1}"
        )
        if not isinstance(context, Tensor) or context.shape != (images,) or context.is_floating_point():
            given = tuple(context.shape) if isinstance(context, Tensor) else type(context).__name__
            raise ValueError(f"context {given}: expected {expected}, or -1")
        # On an accelerator, reading the values would synchronise with it.
        if context.device.type == "cpu" and not torch.compiler.is_compiling() and images:
            least, most = int(context.min()), int(context.max())
            if least < -1 or most >= self.num_experts:
                raise ValueError(f"context from {least} to {most}: expected {expected}, or -1")
        return context.long()


def _choices(plan: Plan) -> tuple[Int[Tensor, "N k"], Float[Tensor, "N k"]]:
    """The experts of each token of a plan (E where a choice was dropped), and their weights."""
    assert isinstance(plan, SparsePlan)
    assert plan.inverse is not None
    expert_Nk = (plan.inverse[..., None] >= plan.count.cumsum(0)).sum(-1)
    return expert_Nk, plan.weight[plan.inverse]
