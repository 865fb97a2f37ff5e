"""Freezes parts of a network."""

from typing import Any, get_args

import torch
from torch import nn

from vismoe.features.features import classifiers
from vismoe.moe import LowRankExperts, MoE
from vismoe.vit.conversion.places import find_blocks

from .options import Options, Trained

SHARES = {"all": 1.0, "last-third": 1 / 3, "last-two": 1 / 6, "experts": 1 / 3, "head": 0.0}
"""Fraction of the blocks that the backward pass goes through."""


def choose_trained(options: Options, model: nn.Module, device: torch.device, on_cpu: Trained = "last-third") -> Trained:
    """The part of a network to train: as in the options, or for "auto" `on_cpu` of a trained network on a CPU,
    otherwise all."""
    if options.train != "auto":
        return options.train
    is_limited = options.trained and device.type == "cpu"
    return on_cpu if is_limited and find_blocks(model) is not None else "all"


def experts_are_equal(model: nn.Module) -> bool:
    """Whether the experts of each sparse layer are equal, as upcycling makes them: they are not trained. False for a
    dense network."""
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    return bool(layers) and all(map(_are_equal, layers))


def _are_equal(layer: MoE) -> bool:
    experts: Any = layer.experts
    first, *others = (experts.expert(number).state_dict() for number in range(experts.num_experts))
    return all(torch.equal(value, other[name]) for other in others for name, value in first.items())


def freeze(model: nn.Module, train: Trained, router: bool = True) -> None:
    """Sets which parameters are trained (`requires_grad`). The MLP inside low-rank experts is always frozen.

    **Arguments:**

    - `model`: the network, changed in place.
    - `train`: the trained part.
        - "all": all parameters.
        - "last-third": the last third of the blocks (rounded up), the modules after them, and the head.
        - "last-two": the last two blocks, the modules after them, and the head.
        - "experts": sparse layers and the head.
        - "head": only the classifier.
    - `router`: whether routers are trained; default True. False freezes also their balancing.

    **Raises:** ValueError if the network lacks a list of blocks, a sparse layer or a classifier that `train` needs.
    """
    if train not in get_args(Trained):
        raise ValueError(f"train={train!r}: accepted are {', '.join(get_args(Trained))}")
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    if train == "experts" and not layers:
        raise ValueError('train="experts": the model is dense, so it has no experts')
    heads = classifiers(model)
    if train != "all" and not heads:
        raise ValueError(f"train={train!r}: the classifier of {type(model).__name__} is not known")
    for layer in layers:
        layer.router.requires_grad_(True)  # for routers without parameters, which the next line does not reach
    model.requires_grad_(train == "all")
    if train in ("last-third", "last-two"):
        for part in _last_blocks(model, train):
            part.requires_grad_(True)
    if train == "experts":
        for layer in layers:
            layer.requires_grad_(True)
    for head in heads:
        head.requires_grad_(True)
    for layer in layers:
        if isinstance(layer.experts, LowRankExperts):
            layer.experts.mlp.requires_grad_(False)
        layer.freeze_router()
        if not router:
            layer.router.requires_grad_(False)


def _last_blocks(model: nn.Module, train: Trained) -> list[nn.Module]:
    """The last third of the blocks, or the last two, and the modules registered after them."""
    path = find_blocks(model)
    if path is None:
        raise ValueError(f'train="{train}": {type(model).__name__} has no list of blocks; use "all" or "head"')
    blocks, following, outer = list(model.get_submodule(path).children()), [], model
    for name in path.split("."):
        names = [child for child, _ in outer.named_children()]
        following += [outer.get_submodule(child) for child in names[names.index(name) + 1 :]]
        outer = outer.get_submodule(name)
    first = len(blocks) * 2 // 3 if train == "last-third" else max(0, len(blocks) - 2)
    return [*blocks[first:], *following]
