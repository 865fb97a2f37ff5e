"""What moves which parameters."""

import re
from typing import Any

import timm.optim
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from vismoe.moe import MoE

from .recipe import Recipe

TIMM: dict[str, dict[str, Any]] = {
    "adamw": {"opt": "adamw"},
    "sgd": {"opt": "sgd"},
    "momentum": {"opt": "sgdw", "nesterov": False},
}
"""What timm calls our optimisers."""


def freeze(model: nn.Module, pattern: str) -> None:
    """Takes the gradient from the parameters in whose names a regular expression is found.

    Nothing is computed for them, so that they count in no norm that is clipped by; the reference computes their
    gradients, clips by the norm of all, and drops them last (google-research/vmoe, train/optimizer.py).

    **Raises:** ValueError where it is found in no name, or in all.
    """
    found = [parameter for name, parameter in model.named_parameters() if re.search(pattern, name)]
    _check_found(bool(found), "frozen", pattern, model)
    for parameter in found:
        parameter.requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, MoE):
            layer.freeze_router()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"frozen={pattern!r}: nothing is left to train")


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """timm's optimiser of the parameters that have a gradient.

    **Raises:** ValueError where a pattern of the weight decay or of the rates is found in no parameter's name.
    """
    options = TIMM[recipe.optimizer] | {"lr": recipe.learning_rate, "momentum": recipe.momentum}
    return timm.optim.create_optimizer_v2(model, **options, param_group_fn=lambda _: _groups(model, recipe))


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters of one decay and one rate together; `lr_scale`: their rate by the recipe's."""
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    decays = recipe.weight_decay if isinstance(recipe.weight_decay, tuple) else ()
    for field, pairs in (("weight_decay", decays), ("learning_rates", recipe.learning_rates)):
        for pattern, _ in pairs:
            _check_found(any(re.search(pattern, name) for name in names.values()), field, pattern, model)
    groups = []
    for group in _as_timm_has_them(model, recipe):
        parts: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            name = names[id(parameter)]
            decay = _named(decays, name, 0.0) if decays else group["weight_decay"]
            rate = _named(recipe.learning_rates, name, recipe.learning_rate)
            parts.setdefault((decay, rate), []).append(parameter)
        for (decay, rate), params in parts.items():
            scale = group.get("lr_scale", 1.0) * (rate / recipe.learning_rate)
            groups.append(group | {"params": params, "weight_decay": decay, "lr_scale": scale})
    return groups


def _as_timm_has_them(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups by what a parameter is and by its block, before names are looked at."""
    decay = 0.0 if isinstance(recipe.weight_decay, tuple) else recipe.weight_decay
    spared: set[str] = getattr(model, "no_weight_decay", set)()
    if recipe.layer_decay == 1:
        return param_groups_weight_decay(model, decay, no_weight_decay_list=spared)
    return param_groups_layer_decay(model, decay, no_weight_decay_list=spared, layer_decay=recipe.layer_decay)


def _named(pairs: tuple[tuple[str, float], ...], name: str, otherwise: float) -> float:
    """What stands beside the first pattern that is found in a name."""
    return next((value for pattern, value in pairs if re.search(pattern, name)), otherwise)


def _check_found(found: bool, field: str, pattern: str, model: nn.Module) -> None:
    if not found:
        names = ", ".join([name for name, parameter in model.named_parameters() if parameter.requires_grad][:3])
        raise ValueError(f"{field}={pattern!r} is found in no parameter's name; there are {names}, …")
