"""What moves which parameters."""

import re
from typing import Any

import timm.optim
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import Optimizer

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
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"frozen={pattern!r}: nothing is left to train")


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """timm's optimiser of the parameters that have a gradient.

    **Raises:** ValueError where a pattern of the weight decay is found in no parameter's name.
    """
    decay, layer_decay = recipe.weight_decay, recipe.layer_decay if recipe.layer_decay < 1 else None
    options = TIMM[recipe.optimizer] | {"lr": recipe.learning_rate, "momentum": recipe.momentum}
    if isinstance(decay, tuple):
        groups = _groups(model, decay, layer_decay)
        return timm.optim.create_optimizer_v2(model, **options, param_group_fn=lambda _: groups)
    return timm.optim.create_optimizer_v2(model, **options, weight_decay=decay, layer_decay=layer_decay)


def _groups(model: nn.Module, decays: tuple[tuple[str, float], ...], layer_decay: float | None) -> list[dict[str, Any]]:
    """Parameters of one decay, and where rates differ from block to block of one rate, together."""
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for pattern, _ in decays:
        _check_found(any(re.search(pattern, name) for name in names.values()), "weight_decay", pattern, model)
    whole: list[dict[str, Any]] = (
        [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]
        if layer_decay is None
        else param_groups_layer_decay(model, weight_decay=0.0, layer_decay=layer_decay)
    )
    groups = []
    for group in whole:
        by_decay: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            name = names[id(parameter)]
            decay = next((decay for pattern, decay in decays if re.search(pattern, name)), 0.0)
            by_decay.setdefault(decay, []).append(parameter)
        groups += [group | {"params": params, "weight_decay": decay} for decay, params in by_decay.items()]
    return groups


def _check_found(found: bool, field: str, pattern: str, model: nn.Module) -> None:
    if not found:
        names = ", ".join([name for name, parameter in model.named_parameters() if parameter.requires_grad][:3])
        raise ValueError(f"{field}={pattern!r} is found in no parameter's name; there are {names}, …")
