"""Makes a trained dense transformer sparse (Komatsuzaki et al. 2022, *Sparse Upcycling*)."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import nn

from vismoe.files.renamed import renamed_argument
from vismoe.moe import MLP, MLPExperts, MoE, StackedLinear, TopKRouter, read_mlp

from ..config import OVERRIDES, MoEConfig
from .places import copy_of, find_mlps, remember, replace_mlp


@renamed_argument("layers", "moe_layers")
def upcycle(
    model: nn.Module,
    num_experts: int = 8,
    moe_layers: str | Sequence[int] = "last-2",
    k: int | None = None,
    experts: Literal["full", "low-rank"] = "full",
    rank: int | None = None,
    shared: bool = False,
    split: int = 1,
    perturb: float = 0.0,
    seed: int = 0,
    inplace: bool = False,
    **options: Any,
) -> nn.Module:
    """Turns a trained dense model (the parent) into a sparse one: some MLPs become experts, with a new router.

    The sparse model starts with the parent's outputs, up to rounding, if the weights of a token's experts sum to 1 (the
    default), no token is dropped and `perturb` is 0. With options that prevent this, a warning says so.

    **Arguments:**

    - `model`: a network with a list of blocks that have one MLP of a known class each: ViTs of timm (plain, DeiT, BEiT,
      DINOv2/v3, SigLIP, EVA, …), torchvision and transformers, and similar networks for text and sound.
      `vismoe.register_mlp` adds classes.
    - `num_experts`: number of experts per layer, E; default 8.
    - `moe_layers`: the sparse blocks: "last-N" (the last N of the odd blocks 1, 3, 5, …), "every-N", or a list of block
      numbers from 0; default "last-2".
    - `k`: experts per token; default None: `split`.
    - `experts`: what an expert is; default "full".
        - "full": a copy of the parent's MLP.
        - "low-rank": a low-rank difference from the parent's MLP, which is frozen; it starts at 0
          (`vismoe.LowRankExperts`).
    - `rank`: rank of the low-rank differences, only with `experts="low-rank"`; default None: 16.
    - `shared`: whether all tokens keep the parent's MLP. The experts are then new and smaller (a quarter of its hidden
      width, or `expert_hidden_dim`), and their last layer starts at 0. Default False.
    - `split`: number of experts that each copy of the MLP is cut into; default 1: whole copies. Each gets a part of the
      hidden units, and their mean is the MLP. Their router rows start equal, so a token goes to all of them (the
      "virtual groups" of He et al. 2024, *Upcycling Large Language Models into Mixture of Experts*). `num_experts` must
      be a multiple of it.
    - `perturb`: noise on all copies but the first, as a fraction of each weight's standard deviation; default 0.
    - `seed`: seed of the router and of new weights; default 0.
    - `inplace`: whether `model` itself is changed; default False: a copy.
    - `options`: other fields of `vismoe.vit.MoEConfig` (balance=, combine=, noise_std=, capacity_factor=, block_list=,
      …). `combine` defaults to "unit" for k=1, and the router then does not learn (docs/upcycling.md); otherwise to
      "renormalized". The routers "hash" and "random" do not have `combine`: they average the k experts.

    **Returns:** the sparse model.

    **Raises:** ValueError for a sparse model, for MLPs of unknown classes, for options that contradict each other, and
    for MLPs that are quantised, have pruning masks, or have adapters that are not merged.
    """
    if unknown := sorted(set(options) - set(OVERRIDES)):
        raise ValueError(f"upcycle has no option {', '.join(unknown)}")
    k = split if k is None else k
    _check_upcycling(
        k, num_experts, split, shared or experts == "low-rank", perturb, seed, options.get("expert_hidden_dim", 0)
    )
    given = {} if rank is None else {"rank": rank}
    config = MoEConfig(moe_layers, num_experts, k, **{"experts": experts, "shared": shared} | given | options)
    if rank is not None and experts != "low-rank":
        raise ValueError(f'rank={rank}: accepted only with experts="low-rank", got experts="{experts}"')
    summing: Literal["unit", "renormalized"] | None = None
    if config.router_has("combine"):
        summing = "unit" if k == 1 else "renormalized"
        config = replace(config, combine=options.get("combine", summing))
    elif split > 1:
        raise ValueError(
            f"split={split} with router={config.router!r}: a token must go to all experts of one copy, but this router "
            "chooses each expert independently: use whole copies (split=1)"
        )
    model = model if inplace else copy_of(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        replaced = make_sparse(model, config, split)
        for layer, mlp in replaced:
            _initialise_from(layer, mlp, split, perturb)
    _warn_unless_equal(config, summing, perturb)
    return model


def _check_upcycling(
    k: int, num_experts: int, split: int, are_new: bool, perturb: float, seed: int, expert_hidden_dim: int
) -> None:
    if split < 1 or (split > 1 and (are_new or k != split or num_experts % split)):
        raise ValueError(
            f"split={split}, k={k}, num_experts={num_experts}: split must be k and divide num_experts; accepted only "
            'with experts="full" and shared=False'
        )
    if not 0 <= perturb < math.inf or (perturb and are_new):
        raise ValueError(
            f'perturb={perturb}: accepted are finite numbers ≥ 0, and only 0 unless experts="full" and shared=False'
        )
    if expert_hidden_dim and not are_new:
        raise ValueError(
            f"expert_hidden_dim={expert_hidden_dim}: copies of the parent's MLP have its width; accepted only with "
            "shared=True; split= cuts copies into narrower experts"
        )
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed}: accepted are 0…2^63 − 1")


def _warn_unless_equal(config: MoEConfig, summing: str | None, perturb: float) -> None:
    if config.num_experts == 1:
        warnings.warn("num_experts=1: all tokens go to the same expert, so there is nothing to route", stacklevel=4)
    reasons = [f"router={config.router!r}"] if config.router in ("expert-choice", "soft") else []
    reasons += [
        f"{name}={value}"
        for name in ("capacity_factor", "eval_capacity_factor")
        if (value := getattr(config, name)) not in ("none", "same")
    ]
    if summing is not None and config.combine != summing and not config.shared:
        reasons.append(f"combine={config.combine!r} (with {summing!r} a token's weights sum to 1)")
    if perturb:
        reasons.append(f"perturb={perturb}")
    if reasons:
        warnings.warn(f"the sparse model does not start as its parent, because of {', '.join(reasons)}", stacklevel=4)


def make_sparse(model: nn.Module, config: MoEConfig, split: int = 1) -> list[tuple[MoE, MLP]]:
    """Replaces the MLPs that `config` names by sparse layers with random parameters, and sets `model.moe`.

    **Arguments:**

    - `model`: a dense transformer, changed in place.
    - `config`: which MLPs, and how.
    - `split`: see `upcycle`; default 1.

    **Returns:** the layers, each with the MLP that it replaced.

    **Raises:** as `upcycle`.
    """
    if config.ensemble_size:
        remedy = "build one with vismoe.create_model(…, ensemble_size=…), and copy the weights into it"
        raise ValueError(f"ensemble_size={config.ensemble_size}: upcycling cannot make an ensemble; {remedy}")
    if config.shared_hidden_dim:
        raise ValueError(f"shared_hidden_dim={config.shared_hidden_dim}: upcycling shares the parent's own MLP")
    paths = find_mlps(model, config.block_list or None)
    places = {path: read_mlp(model.get_submodule(path)) for path in (paths[i] for i in config.blocks(len(paths)))}
    if not config.expert_hidden_dim and (split > 1 or config.shared):
        parts, widths = 4 if config.shared else split, sorted({mlp.hidden_dim for mlp in places.values()})
        if len(widths) > 1 or widths[0] % parts:
            raise ValueError(
                f"MLPs of hidden width {', '.join(map(str, widths))} cannot be cut into {parts} equal parts"
            )
        config = replace(config, expert_hidden_dim=widths[0] // parts)
    if split > 1 and any(mlp.norm is not None for mlp in places.values()):
        raise ValueError(f"split={split}: an MLP with a norm of its hidden units cannot be split: use split=1")
    layers = []
    for path, mlp in places.items():
        layer = config.layer(mlp)
        replace_mlp(model, path, layer)
        layers.append((layer, mlp))
    remember(model, config)
    return layers


@torch.no_grad()
def _initialise_from(layer: MoE, mlp: MLP, split: int, perturb: float) -> None:
    """Sets the parameters of a new layer so that it computes the same as `mlp`."""
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
    """One of `parts` MLPs whose mean is `mlp`: it has a part of the hidden units, with weights that are multiplied by
    `parts`."""
    if parts == 1:
        return mlp
    part = mlp.empty_like(mlp.hidden_dim // parts)
    for name, whole in mlp.state_dict().items():
        cut = whole if name == "down.bias" else whole.chunk(parts, 1 if name == "down.weight" else 0)[number]
        part.get_parameter(name).copy_(cut * parts if name == "down.weight" else cut)
    return part
