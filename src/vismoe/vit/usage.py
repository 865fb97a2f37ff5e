"""Which experts a domain's tokens use."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vismoe.moe import SparsePlan, record
from vismoe.moe.record import layers_of


@dataclass(frozen=True)
class Usage:
    """Of one layer: `share`, each expert's share of all choices; `weight`, the mean over tokens of the combine weight
    that each expert has (0 where it was not chosen)."""

    share: Float[Tensor, " E"]
    weight: Float[Tensor, " E"]


@torch.no_grad()
def measure_usage(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Usage]:
    """Runs a model over a domain's batches, at evaluation, and tells which experts of each layer it used.

    **Raises:** ValueError where there is no batch.
    """
    was_training = model.training
    model.eval()
    load: dict[str, Tensor] = {}
    weight: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}
    for batch in batches:
        with record(model) as routing:
            model(batch)
        for name, calls in routing.layers.items():
            for call in calls:
                plan = call.plan
                sums = _sums_of_weights(plan) if isinstance(plan, SparsePlan) else call.gates.sum((0, 1)).double()
                load[name] = load.get(name, 0) + plan.count.double()
                weight[name] = weight.get(name, 0) + sums
                tokens[name] = tokens.get(name, 0) + plan.num_tokens
    model.train(was_training)
    if not load and layers_of(model):
        raise ValueError("no batch was given: which experts a domain uses is not known without its images")
    return {
        name: Usage((load[name] / load[name].sum()).float(), (weight[name] / tokens[name]).float()) for name in load
    }


def _sums_of_weights(plan: SparsePlan) -> Float[Tensor, " E"]:
    live = int(plan.count.sum())
    expert = torch.repeat_interleave(torch.arange(len(plan.count), device=plan.count.device), plan.count)
    return plan.weight.new_zeros(len(plan.count)).index_add(0, expert, plan.weight[:live]).double()
