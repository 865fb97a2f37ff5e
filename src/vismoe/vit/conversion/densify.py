"""Measures which experts a data set uses, and makes a model with fewer experts, or none, from it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vismoe.moe import MLP, MLPExperts, MoE, SparsePlan, TopKRouter, record, stacked_parts
from vismoe.moe.record import layers_of

from ..modes import evaluating
from .places import copy_of, remember, restore_mlp, sparse_layers

How = Literal["expert", "merge"]


@dataclass(frozen=True)
class Usage:
    """How much a data set uses each expert of one layer.

    - `share`: each expert's fraction of all choices, 0 to 1.
    - `weight`: each expert's combine weight, mean over all tokens (0 for tokens that did not choose it).
    """

    share: Float[Tensor, " E"]
    weight: Float[Tensor, " E"]


@torch.no_grad()
def measure_usage(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None
) -> dict[str, Usage]:
    """Runs a model on batches, in evaluation mode, and measures how much each expert of each layer is used.

    **Arguments:**

    - `model`: a network; it is not changed.
    - `batches`: model inputs, (B, C, H, W) each, or what `forward` takes.
    - `forward`: (model, batch) -> anything, runs the network; default: `model(batch)`.

    **Returns:** the usage of each sparse layer, by its name.

    **Raises:** ValueError if there is no batch.
    """
    load: dict[str, Tensor] = {}
    weight: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}
    with evaluating(model):
        for batch in batches:
            with record(model) as routing:
                model(batch) if forward is None else forward(model, batch)
            for name, calls in routing.layers.items():
                for call in calls:
                    plan = call.plan
                    sums = _sums_of_weights(plan) if isinstance(plan, SparsePlan) else call.gates.sum((0, 1)).double()
                    load[name] = load.get(name, 0) + plan.count.double()
                    weight[name] = weight.get(name, 0) + sums
                    tokens[name] = tokens.get(name, 0) + plan.num_tokens
    if not load and layers_of(model):
        raise ValueError("no batch was given: images are needed to measure which experts are used")
    return {
        name: Usage((load[name] / load[name].sum()).float(), (weight[name] / tokens[name]).float()) for name in load
    }


def _sums_of_weights(plan: SparsePlan) -> Float[Tensor, " E"]:
    live = int(plan.count.sum())
    expert = torch.repeat_interleave(torch.arange(len(plan.count), device=plan.count.device), plan.count)
    return plan.weight.new_zeros(len(plan.count)).index_add(0, expert, plan.weight[:live]).double()


def densify(
    model: nn.Module,
    batches: Iterable[Any],
    how: How = "merge",
    inplace: bool = False,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> nn.Module:
    """Makes a dense model: each sparse layer becomes an MLP of the class and the size that the layer replaced.

    The accuracy usually changes: evaluate the result. The command `vismoe densify` does so.

    **Arguments:**

    - `model`: an upcycled or sparse network, but not an ensemble.
    - `batches`: model inputs, (B, C, H, W) each, or what `forward` takes, on which the use of the experts is measured.
    - `how`: the weights of the MLP; default "merge".
        - "merge": the mean of all experts' weights, weighted by how much each is used.
        - "expert": those of the most used expert. If an expert is a part of an MLP (`split` of `upcycle`), as many
          experts as form a whole MLP.
    - `inplace`: whether `model` itself is changed; default False: a copy.
    - `forward`: (model, batch) -> anything, runs the network; default: `model(batch)`.

    **Returns:** the dense model.

    **Raises:** ValueError if there is no sparse layer or no batch, for layers with a shared expert, and for ensembles.
    """
    check_reducible(model, 0, how)
    usage = measure_usage(model, batches, forward)
    model = model if inplace else copy_of(model)
    for path, layer in sparse_layers(model).items():
        restore_mlp(model, path, _one_mlp(layer, usage[path], how))
    remember(model, None)
    return model


def reduce_experts(
    model: nn.Module,
    num_experts: int,
    batches: Iterable[Any],
    how: How = "merge",
    inplace: bool = False,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> nn.Module:
    """Makes a sparse model with fewer experts: each layer keeps those that are used most on `batches`.

    **Arguments:**

    - `model`: an upcycled or sparse network, but not an ensemble.
    - `num_experts`: number of experts to keep in each layer, at least k.
    - `batches`: model inputs, (B, C, H, W) each, or what `forward` takes, on which the use of the experts is measured.
    - `how`: what happens to the other experts; default "merge".
        - "merge": each is merged, weighted by its use, into the kept expert with the most similar router row (Li et
          al. 2023, *Merge, Then Compress*).
        - "expert": they are removed.
    - `inplace`: whether `model` itself is changed; default False: a copy.
    - `forward`: (model, batch) -> anything, runs the network; default: `model(batch)`.

    **Returns:** the smaller model.

    **Raises:** ValueError if there is no sparse layer or no batch, if `num_experts` is less than k or more than the
    layer has, and for merging experts that are low-rank or parts of MLPs.
    """
    check_reducible(model, num_experts, how)
    usage = measure_usage(model, batches, forward)
    model = model if inplace else copy_of(model)
    for path, layer in sparse_layers(model).items():
        kept = usage[path].share.argsort(descending=True, stable=True)[:num_experts].sort().values
        if how == "merge":
            _merge_into(layer, usage[path], kept)
        _keep(layer, kept)
    config = cast(Any, model).moe
    if config is not None:
        remember(model, replace(config, num_experts=num_experts))
    return model


def check_reducible(model: nn.Module, num_experts: int, how: How = "merge") -> None:
    """Checks whether `densify`, or `reduce_experts`, can be used, before images are opened.

    **Arguments:**

    - `model`: the network.
    - `num_experts`: number of experts to keep in each layer; 0: the model becomes dense.
    - `how`: as in these functions; default "merge".

    **Raises:** ValueError as these functions do.
    """
    if how not in ("expert", "merge"):
        raise ValueError(f'how={how!r}: accepted are "expert" and "merge"')
    if not (layers := sparse_layers(model)):
        raise ValueError("the model has no sparse layer: it is dense already")
    if getattr(model, "ensemble_size", 0):
        raise ValueError("the model is an ensemble: each member needs its own experts, so none can be removed")
    for path, layer in layers.items():
        if num_experts:
            _check_layer(path, layer, num_experts, how)
        elif layer.shared is not None:
            raise ValueError(f"{path} has a shared expert: its other experts are smaller than the parent's MLP")


def _check_layer(path: str, layer: MoE, num_experts: int, how: How) -> None:
    router = cast(TopKRouter, layer.router)
    if not isinstance(getattr(router, "weight", None), Tensor):
        raise ValueError(
            f"the {type(router).__name__} of {path} has no row for each expert, so experts cannot be removed"
        )
    if num_experts > router.num_experts:
        raise ValueError(
            f"num_experts={num_experts}: {path} has {router.num_experts} experts; they can only be removed"
        )
    if num_experts < router.k:
        raise ValueError(
            f"num_experts={num_experts}: {path} sends each token to {router.k} experts, so keep {router.k}"
        )
    if how == "merge" and (not isinstance(layer.experts, MLPExperts) or _experts_per_mlp(layer) > 1):
        raise ValueError(
            f"the experts of {path} are low-rank or parts of MLPs, so they cannot be merged: keep the most used ones "
            'unchanged with how="expert" (--how expert)'
        )


def _experts_per_mlp(layer: MoE) -> int:
    """How many experts together are as wide as the MLP that the layer replaced."""
    experts: Any = layer.experts
    whole: int = experts.hidden_dim if layer.origin is None else layer.origin.hidden_dim
    return max(1, whole // experts.hidden_dim)


def _one_mlp(layer: MoE, usage: Usage, how: How) -> MLP:
    """The MLP that replaces a sparse layer: experts are averaged within groups, and the groups are concatenated."""
    experts: Any = layer.experts
    parts, numbers = _experts_per_mlp(layer), range(experts.num_experts)
    if how == "expert":
        chosen = usage.share.argsort(descending=True, stable=True)[:parts].sort().values.tolist()
        groups = [[number] for number in chosen]
    else:  # the n-th parts of all copies of the MLP form a group
        groups = [list(numbers[part::parts]) for part in range(parts)]
    total = usage.weight.sum() / parts
    merged = []
    for group in groups:
        share = usage.weight[group].double()
        share = share / share.sum() if share.sum() > 0 else torch.full_like(share, 1 / len(group))
        mlp = _mean([experts.expert(number) for number in group], share)
        scale = (usage.weight[group].sum() if how == "merge" else total).to(mlp.down.weight)
        with torch.no_grad():
            for parameter in mlp.down.parameters():
                parameter.mul_(scale)
        merged.append(mlp)
    return _concatenated(merged)


@torch.no_grad()
def _mean(mlps: Sequence[MLP], shares: Tensor) -> MLP:
    mean = mlps[0].empty_like().train(mlps[0].training)
    for name, parameter in mean.named_parameters():
        stacked = torch.stack([mlp.get_parameter(name).double() for mlp in mlps], -1)
        parameter.copy_(stacked @ shares.to(stacked))
    return mean


@torch.no_grad()
def _concatenated(mlps: Sequence[MLP]) -> MLP:
    """The MLP that computes the sum of several MLPs: their hidden units, concatenated."""
    if len(mlps) == 1:
        return mlps[0]
    whole = mlps[0].empty_like(sum(mlp.hidden_dim for mlp in mlps)).train(mlps[0].training)
    for name, parameter in whole.named_parameters():
        parts: list[Tensor] = [mlp.get_parameter(name) for mlp in mlps]
        if name == "down.bias":
            parameter.copy_(torch.stack(parts).sum(0))
        else:
            parameter.copy_(torch.cat(parts, 1 if name == "down.weight" else 0))
    return whole


@torch.no_grad()
def _merge_into(layer: MoE, usage: Usage, kept: Tensor) -> None:
    """Merges each expert into the kept expert with the most similar router row."""
    experts, rows = cast(MLPExperts, layer.experts), nn.functional.normalize(cast(TopKRouter, layer.router).weight)
    nearest = kept[(rows @ rows[kept].T).argmax(1)].tolist()
    whole = [experts.expert(number) for number in range(experts.num_experts)]
    for number in kept.tolist():
        group = [other for other, target in enumerate(nearest) if target == number]
        share = usage.share[group].double()
        share = share / share.sum() if share.sum() > 0 else torch.full_like(share, 1 / len(group))
        experts.set_expert(number, _mean([whole[other] for other in group], share))


@torch.no_grad()
def _keep(layer: MoE, kept: Tensor) -> None:
    """Removes the experts that are not in `kept`, with their rows in the router and in its buffers."""
    modules: tuple[Any, Any] = (layer.router, layer.experts)
    for module in modules:
        for part in stacked_parts(module):
            for name, parameter in part.named_parameters(recurse=False):
                setattr(part, name, nn.Parameter(parameter[kept].clone(), parameter.requires_grad))
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, buffer[kept].clone())
        module.num_experts = len(kept)
