"""Tables of the experts that routers chose for a set of images."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vismoe.data import ImageSet
from vismoe.inference import Predictor
from vismoe.moe import MemberRouter, Plan, SoftPlan
from vismoe.moe.record import layers_of


@dataclass(frozen=True)
class LayerRouting:
    """One MoE layer's choices for N images.

    - `expert`: (N, S, k), the experts of each token; −1 for a dropped choice, and if a token has fewer experts than
      others. An ensemble has k per member, member after member. Tokens are in the network's order, prefix tokens (class
      token) first.
    - `num_experts`: number of experts E.
    """

    expert: Int[Tensor, "N S k"]
    num_experts: int

    def by_class(self, labels: Int[Tensor, " N"] | Bool[Tensor, "N classes"], num_classes: int) -> Tensor:
        """Counts the tokens of each class's images that each expert received: (E, classes)."""
        experts = self.expert.flatten(1)
        counts = torch.zeros(len(experts), self.num_experts + 1, dtype=torch.int64, device=experts.device)
        counts.scatter_add_(1, experts + 1, torch.ones_like(experts))  # the first column counts dropped choices
        counts, labels = counts[:, 1:].T, labels.to(experts.device)
        if labels.ndim == 2:
            return counts @ labels.long()
        return counts.new_zeros(self.num_experts, num_classes).index_add_(1, labels, counts)


def experts_of_tokens(plan: Plan) -> Int[Tensor, "N k"]:
    """The experts of each token, best first; −1 for a dropped choice. If tokens have different numbers of experts, k is
    E and unused entries are −1. In soft routing k is 1: the expert with the largest combine weight."""
    return choices_of_tokens(plan)[0]


def choices_of_tokens(plan: Plan) -> tuple[Int[Tensor, "N k"], Float[Tensor, "N k"]]:
    """The experts of each token, as `experts_of_tokens` returns them, and their combine weights; 0 where a choice was
    dropped."""
    if isinstance(plan, SoftPlan):
        largest = plan.combine.sum(-1).flatten(0, 1).max(1, keepdim=True)
        return largest.indices, largest.values
    expert_of_row = torch.repeat_interleave(torch.arange(len(plan.count), device=plan.count.device), plan.count)
    if plan.inverse is None:
        weight = plan.weight.new_full((plan.num_tokens, len(plan.count)), -1)
        weight[plan.token[: len(expert_of_row)], expert_of_row] = plan.weight[: len(expert_of_row)]
        best = weight.sort(1, descending=True)
        return torch.where(best.values < 0, -1, best.indices), best.values.clamp_min(0)
    dropped = torch.full((len(plan.token) - len(expert_of_row),), -1, device=expert_of_row.device)
    return torch.cat([expert_of_row, dropped])[plan.inverse], plan.weight[plan.inverse]


def route(predictor: Predictor, images: ImageSet) -> dict[str, LayerRouting]:
    """Runs a network on images, and returns the choices of each MoE layer by its name.

    **Arguments:**

    - `predictor`: the network.
    - `images`: data set of images.

    **Returns:** {layer name: choices}; empty for a dense model, which is not run.
    """
    if not layers_of(predictor.model):
        return {}
    tables: dict[str, list[Tensor]] = {}
    experts: dict[str, int] = {}
    for output in predictor.outputs(images):
        for name, calls in output.routing.layers.items():
            for call in calls:
                table = experts_of_tokens(call.plan).cpu()
                members = call.router.members if isinstance(call.router, MemberRouter) else 1
                tables.setdefault(name, []).append(table.view(len(output.places), -1, members * table.shape[1]))
                experts[name] = len(call.load)
    return {name: LayerRouting(torch.cat(parts), experts[name]) for name, parts in tables.items()}
