"""The optimiser: its parameter groups, and its state by the names of parameters."""

import re
from collections.abc import Mapping
from typing import Any

import timm.optim
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.optim import Optimizer

from vismoe.moe import MoE

from .recipe import Recipe

TIMM: dict[str, dict[str, Any]] = {
    "adamw": {"opt": "adamw"},
    "sgd": {"opt": "sgd"},
    "momentum": {"opt": "sgdw", "nesterov": False},
}
"""Arguments of timm's factory, by our names of optimisers."""


def freeze(model: nn.Module, pattern: str) -> None:
    """Freezes the parameters whose names a regular expression matches.

    They get no gradient, so they do not count in the norm for clipping; the reference computes their gradients, clips
    by the norm of all, and drops them last (google-research/vmoe, train/optimizer.py).

    **Raises:** ValueError where it matches no name, or all.
    """
    matching = [parameter for name, parameter in model.named_parameters() if re.search(pattern, name)]
    _check_matches(bool(matching), "frozen", pattern, model)
    for parameter in matching:
        parameter.requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, MoE):
            layer.freeze_router()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"frozen={pattern!r}: nothing is left to train")


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """timm's optimiser of the parameters that have a gradient.

    **Raises:** ValueError where a pattern of the weight decay or of the rates matches no parameter's name.
    """
    options = TIMM[recipe.optimizer] | {"lr": recipe.learning_rate, "momentum": recipe.momentum}
    return timm.optim.create_optimizer_v2(model, **options, param_group_fn=lambda _: _groups(model, recipe))


def named_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """An optimiser's state by the names of the model's parameters: PARAMETER.ENTRY for each entry of a parameter's
    state, tensor or not, and `groups`, the options of each group beside the names of its parameters.

    **Raises:** ValueError for an entry that belongs to no parameter.
    """
    names, packed = _parameter_names(model, optimizer), optimizer.state_dict()
    state: dict[str, Any] = {}
    for number, entries in packed["state"].items():
        if not isinstance(number, int):
            raise ValueError(
                f"the state of {type(optimizer).__name__} has {number!r}, which is of no parameter: a checkpoint holds "
                "entries of parameters alone; train with another optimizer"
            )
        state |= {f"{names[number]}.{entry}": value for entry, value in entries.items()}
    groups = []
    for group in packed["param_groups"]:
        options = {option: list(value) if isinstance(value, tuple) else value for option, value in group.items()}
        groups.append(options | {"params": [names[number] for number in group["params"]]})
    return state | {"groups": groups}


def load_named_state(model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Loads what `named_state` returned, whatever the order of the parameters was then. `#NUMBER` may stand in place of
    a name: the parameter's number, counted through all groups.

    **Raises:** ValueError where an entry belongs to no parameter of the optimiser.
    """
    names, packed = _parameter_names(model, optimizer), optimizer.state_dict()
    numbers = {name: number for number, name in enumerate(names)}
    numbers |= {f"#{number}": number for number in range(len(names))}
    entries: dict[int, dict[str, Any]] = {}
    for name, value in state.items():
        if name != "groups":
            parameter, entry = _split_entry(name, numbers)
            entries.setdefault(numbers[parameter], {})[entry] = value
    saved_groups = {name: group for group in state.get("groups", []) for name in group["params"]}
    groups = []
    for group in packed["param_groups"]:
        saved = saved_groups.get(names[group["params"][0]], {}) if group["params"] else {}
        options = {
            option: tuple(value) if isinstance(group.get(option), tuple) else value for option, value in saved.items()
        }
        groups.append(group | options | {"params": group["params"]})
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter_entries in entries.items():
        loaded = optimizer.state[parameters[number]]
        for entry, value in parameter_entries.items():
            if isinstance(value, Tensor):
                # PyTorch gives even counts the parameter's type. A copy, because the tensor may lie in a mapped file.
                loaded[entry] = value.to(loaded[entry].device, copy=True)


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names of an optimiser's parameters in the order of its groups, which is how PyTorch numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _split_entry(name: str, parameters: Mapping[str, int]) -> tuple[str, str]:
    """Splits a name into a parameter's name and the name of an entry of its state; both may have dots.

    **Raises:** ValueError where it begins with no parameter's name.
    """
    places = [place for place, letter in enumerate(name) if letter == "."]
    for place in places:
        if name[:place] in parameters:
            return name[:place], name[place + 1 :]
    raise ValueError(f"the checkpoint is of another network than the recipe's: {name} is of no parameter that trains")


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups of parameters with one decay and one rate; `lr_scale`: their rate ÷ the recipe's."""
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    decays = recipe.weight_decay if isinstance(recipe.weight_decay, tuple) else ()
    for field, pairs in (("weight_decay", decays), ("learning_rates", recipe.learning_rates)):
        for pattern, _ in pairs:
            _check_matches(any(re.search(pattern, name) for name in names.values()), field, pattern, model)
    groups = []
    for group in _timm_groups(model, recipe):
        subgroups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            name = names[id(parameter)]
            decay = _first_match(decays, name, 0.0) if decays else group["weight_decay"]
            rate = _first_match(recipe.learning_rates, name, recipe.learning_rate)
            subgroups.setdefault((decay, rate), []).append(parameter)
        for (decay, rate), params in subgroups.items():
            scale = group.get("lr_scale", 1.0) * (rate / recipe.learning_rate)
            groups.append(group | {"params": params, "weight_decay": decay, "lr_scale": scale})
    return groups


def _timm_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """timm's groups: by the kind of a parameter and, with layer decay, by its block; patterns of names come later."""
    decay = 0.0 if isinstance(recipe.weight_decay, tuple) else recipe.weight_decay
    undecayed: set[str] = getattr(model, "no_weight_decay", set)()
    if recipe.layer_decay == 1:
        return param_groups_weight_decay(model, decay, no_weight_decay_list=undecayed)
    return param_groups_layer_decay(model, decay, no_weight_decay_list=undecayed, layer_decay=recipe.layer_decay)


def _first_match(pairs: tuple[tuple[str, float], ...], name: str, default: float) -> float:
    """The value of the first pattern that matches a name."""
    return next((value for pattern, value in pairs if re.search(pattern, name)), default)


def _check_matches(matches: bool, field: str, pattern: str, model: nn.Module) -> None:
    if not matches:
        names = ", ".join([name for name, parameter in model.named_parameters() if parameter.requires_grad][:3])
        raise ValueError(f"{field}={pattern!r} is found in no parameter's name; there are {names}, …")
