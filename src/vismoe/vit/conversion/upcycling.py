"""A trained dense transformer made sparse (Komatsuzaki et al. 2022, *Sparse Upcycling*)."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import nn

from vismoe.moe import MLP, MLPExperts, MoE, StackedLinear, TopKRouter, read_mlp

from ..config import OVERRIDES, MoEConfig
from .places import copy_of, find_mlps, remember, replace_mlp


def upcycle(
    model: nn.Module,
    num_experts: int = 8,
    layers: str | Sequence[int] = "last-2",
    k: int | None = None,
    experts: Literal["full", "low-rank"] = "full",
    rank: int = 16,
    shared: bool = False,
    split: int = 1,
    perturb: float = 0.0,
    seed: int = 0,
    inplace: bool = False,
    **options: Any,
) -> nn.Module:
    """A sparse model that starts as its dense parent: some blocks' MLPs become experts, and a router is drawn.

    At step 0 its outputs are the parent's within rounding, as long as the weights of a token's experts sum to 1 (the
    default), nothing is dropped and nothing perturbed; where an option forbids that, a warning says so.

    **Arguments:**

    - `model`: any timm ViT (plain, DeiT, BEiT, DINOv2/v3, SigLIP, EVA, …), torchvision's, transformers' vision models
      and similar ones for text and sound: any network with a list of blocks that have one MLP each of a known class
      (`vismoe.register_mlp` adds classes).
    - `num_experts`: E; default 8.
    - `layers`: "last-N" (the last N of the odd blocks 1, 3, 5, …), "every-N", or a list of block numbers from 0;
      default "last-2".
    - `k`: experts per token; default: `split`, which is 1 by default.
    - `experts`: "full", each a copy of the parent's MLP, or "low-rank", the parent's MLP, frozen, with a low-rank
      difference for each expert that starts at 0 (`vismoe.LowRankExperts`); default "full".
    - `rank`: rank of the differences; default 16.
    - `shared`: whether the parent's MLP stays, for every token, beside new, smaller experts (`expert_hidden_dim`, by
      default a quarter of the parent's) whose last layer starts at 0; default False.
    - `split`: each copy of the parent's MLP becomes so many experts, each with a part of its hidden units; their mean
      is the MLP. The routers' rows of a copy's parts start equal, so that a token goes to all of them (He et al. 2024,
      *Upcycling Large Language Models into Mixture of Experts*: virtual groups). Divides `num_experts`; default 1:
      whole copies.
    - `perturb`: noise on all copies but the first, as a share of each weight's standard deviation; default 0.
    - `seed`: of routers and new weights; default 0.
    - `inplace`: whether `model` itself is changed; default False: a copy.
    - `options`: other fields of `vismoe.vit.MoEConfig` (balance=, combine=, noise_std=, capacity_factor=, block_list=,
      …). `combine` is by default "renormalized"; with k=1 it is "unit": training then moves experts and leaves the
      router as it was drawn (docs/upcycling.md). router="hash" and "random" have no such option, they average the k
      experts.

    **Raises:** ValueError for a model with unknown MLPs, options that contradict each other, a sparse model; for MLPs
    under adapters that are not merged, quantised, or pruned and not for good.
    """
    if unknown := sorted(set(options) - set(OVERRIDES)):
        raise ValueError(f"upcycle has no option {', '.join(unknown)}")
    k = split if k is None else k
    _check_upcycling(
        k, num_experts, split, shared or experts == "low-rank", perturb, seed, options.get("expert_hidden_dim", 0)
    )
    config = MoEConfig(layers, num_experts, k, **{"experts": experts, "rank": rank, "shared": shared} | options)
    summing: Literal["unit", "renormalized"] | None = None
    if config.router_has("combine"):
        summing = "unit" if k == 1 else "renormalized"
        config = replace(config, combine=options.get("combine", summing))
    elif split > 1:
        raise ValueError(
            f"split={split} with router={config.router!r}: parts are the MLP where a token goes to all of one copy, "
            "and this router chooses experts one by one: use copies (split=1)"
        )
    model = model if inplace else copy_of(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer, mlp in make_sparse(model, config, split):
            _start_as(layer, mlp, split, perturb)
    _warn_unless_equal(config, summing, perturb)
    return model


def _check_upcycling(
    k: int, num_experts: int, split: int, are_new: bool, perturb: float, seed: int, expert_hidden_dim: int
) -> None:
    if split < 1 or (split > 1 and (are_new or k != split or num_experts % split)):
        raise ValueError(
            f"split={split}, k={k}, num_experts={num_experts}: split is k, divides num_experts, and goes with "
            'experts="full" without shared'
        )
    if not 0 <= perturb < math.inf or (perturb and are_new):
        raise ValueError(f'perturb={perturb}: accepted are finite shares ≥ 0, and with experts="full" without shared')
    if expert_hidden_dim and not are_new:
        raise ValueError(
            f"expert_hidden_dim={expert_hidden_dim}: copies of the parent's MLP are as wide as it is; it is "
            "for the new experts of shared=True, and split= cuts copies into narrower ones"
        )
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed}: accepted are 0…2^63 − 1")


def _warn_unless_equal(config: MoEConfig, summing: str | None, perturb: float) -> None:
    reasons = [f"router={config.router!r}"] if config.router in ("expert-choice", "soft") else []
    reasons += [
        f"{name}={value}"
        for name in ("capacity_factor", "eval_capacity_factor")
        if (value := getattr(config, name)) not in ("none", "same")
    ]
    if summing is not None and config.combine != summing and not config.shared:
        reasons.append(f"combine={config.combine!r} ({summing!r} makes the experts' weights sum to the MLP)")
    if perturb:
        reasons.append(f"perturb={perturb}")
    if reasons:
        warnings.warn(f"the sparse model does not start as its parent, because of {', '.join(reasons)}", stacklevel=3)


def make_sparse(model: nn.Module, config: MoEConfig, split: int = 1) -> list[tuple[MoE, MLP]]:
    """Replaces the MLPs that `config` names by sparse layers, in place, and leaves their parameters as they were drawn.
    Afterwards `model.moe` is the configuration.

    **Returns:** the layers, each with the MLP that it replaced.
    """
    if config.ensemble_size:
        remedy = "vismoe.create_model(…, ensemble_size=…) builds one, and its weights may be copied there"
        raise ValueError(
            f"ensemble_size={config.ensemble_size}: a network that is upcycled becomes no ensemble; {remedy}"
        )
    if config.shared_hidden_dim:
        raise ValueError(f"shared_hidden_dim={config.shared_hidden_dim}: what is shared here is the parent's own MLP")
    paths = find_mlps(model, config.block_list or None)
    places = {path: read_mlp(model.get_submodule(path)) for path in (paths[i] for i in config.blocks(len(paths)))}
    if not config.expert_hidden_dim and (split > 1 or config.shared):
        parts, widths = 4 if config.shared else split, sorted({mlp.hidden_dim for mlp in places.values()})
        if len(widths) > 1 or widths[0] % parts:
            raise ValueError(f"MLPs of hidden width {', '.join(map(str, widths))} cannot be cut into {parts}")
        config = replace(config, expert_hidden_dim=widths[0] // parts)
    if split > 1 and any(mlp.norm is not None for mlp in places.values()):
        raise ValueError(f"split={split}: an MLP with a norm over its hidden units cannot be cut: use split=1")
    layers = []
    for path, mlp in places.items():
        layer = config.layer(mlp)
        replace_mlp(model, path, layer)
        layers.append((layer, mlp))
    remember(model, config)
    return layers


@torch.no_grad()
def _start_as(layer: MoE, mlp: MLP, split: int, perturb: float) -> None:
    """Gives a new layer the parameters with which it computes the same as `mlp`."""
    experts = layer.experts
    if not isinstance(experts, MLPExperts):
        return
    if layer.shared is not None:
        for parameter in experts.down.parameters():
            parameter.zero_()
        return
    parts = [_part_of_mlp(mlp, number, split) for number in range(split)]
    for number in range(experts.num_experts):
        experts.set_expert(number, parts[number % split])
    for stacked in (part for part in experts.modules() if perturb and isinstance(part, StackedLinear)):
        noise = torch.randn_like(stacked.weight[split:])
        stacked.weight[split:] += perturb * stacked.weight[split:].std((1, 2), keepdim=True) * noise
    if split > 1:
        rows = cast(TopKRouter, layer.router).weight
        rows.copy_(rows[::split].repeat_interleave(split, 0))


def _part_of_mlp(mlp: MLP, number: int, parts: int) -> MLP:
    """The `number`-th of so many MLPs whose mean is `mlp`: a part of its hidden units, with a larger weight."""
    if parts == 1:
        return mlp
    part = mlp.empty_like(mlp.hidden_dim // parts)
    for name, whole in mlp.state_dict().items():
        cut = whole if name == "down.bias" else whole.chunk(parts, 1 if name == "down.weight" else 0)[number]
        part.get_parameter(name).copy_(cut * parts if name == "down.weight" else cut)
    return part
