"""The optimiser: its parameter groups, and its state by parameter name."""

import re
from collections.abc import Mapping
from typing import Any, cast

import timm.optim
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.optim import Optimizer

from vismoe.moe import MoE
from vismoe.vit.weight_decay import without_weight_decay

from .recipe import Recipe

TIMM: dict[str, dict[str, Any]] = {
    "adamw": {"opt": "adamw"},
    "sgd": {"opt": "sgd"},
    "momentum": {"opt": "sgdw", "nesterov": False},
}
"""Arguments of timm's `create_optimizer_v2`, by the names that recipes use."""


def freeze(model: nn.Module, pattern: str) -> None:
    """Freezes the parameters whose names match a regular expression.

    Frozen parameters get no gradient and do not count in the gradient norm. (The reference, google-research/vmoe,
    train/optimizer.py, differs: it computes their gradients, clips by the norm of all gradients, then drops them.)

    **Arguments:**

    - `model`: the network.
    - `pattern`: regular expression, searched in the parameter names.

    **Raises:** ValueError if the pattern matches no parameter or all of them.
    """
    matching = [parameter for name, parameter in model.named_parameters() if re.search(pattern, name)]
    _check_matches(bool(matching), "frozen", pattern, model)
    for parameter in matching:
        parameter.requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, MoE):
            layer.freeze_router()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"frozen={pattern!r} matches all parameters: nothing is left to train; use a narrower pattern")


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Creates the recipe's optimiser (timm's), for all parameters that require a gradient.

    **Raises:** ValueError if a pattern of `weight_decay` or `learning_rates` matches no parameter.
    """
    options = TIMM[recipe.optimizer] | {"lr": recipe.learning_rate, "momentum": recipe.momentum}
    groups = _groups(model, recipe, without_weight_decay(model))
    optimizer: Any = timm.optim.create_optimizer_v2(model, **options, param_group_fn=lambda _: groups)
    # Checkpoints of formats 1 and 2 count the parameters in the order of groups that the network alone named.
    former = _groups(model, recipe, getattr(model, "no_weight_decay", set)())
    optimizer.numbering = _names_in(model, former)
    return cast(Optimizer, optimizer)


def named_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """An optimiser's state by name: PARAMETER.ENTRY for each entry of a parameter's state, tensor or not; and "groups",
    the options of each parameter group with the names of its parameters.

    **Raises:** ValueError for an entry that belongs to no parameter.
    """
    names, packed = _parameter_names(model, optimizer), optimizer.state_dict()
    state: dict[str, Any] = {}
    for number, entries in packed["state"].items():
        if not isinstance(number, int):
            raise ValueError(
                f"the state of {type(optimizer).__name__} has {number!r}, which belongs to no parameter: a checkpoint "
                "can hold only entries of parameters; use another optimizer"
            )
        state |= {f"{names[number]}.{entry}": value for entry, value in entries.items()}
    groups = []
    for group in packed["param_groups"]:
        options = {option: list(value) if isinstance(value, tuple) else value for option, value in group.items()}
        groups.append(options | {"params": [names[number] for number in group["params"]]})
    return state | {"groups": groups}


def load_named_state(model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Loads a state that `named_state` returned. The order of the parameters may differ. Instead of a parameter's name,
    the state may have `#NUMBER`, its number counted through all groups as formats 1 and 2 of checkpoints did.

    **Raises:** ValueError if an entry belongs to no parameter of the optimiser.
    """
    names, packed = _parameter_names(model, optimizer), optimizer.state_dict()
    numbers = {name: number for number, name in enumerate(names)}
    numbers |= {f"#{number}": numbers[name] for number, name in enumerate(getattr(optimizer, "numbering", names))}
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
                # load_state_dict has cast every entry, even step counts, to the dtype of the parameter. A copy,
                # because the file may be memory-mapped.
                value = value.to(loaded[entry].device, copy=True)
                if not value.ndim and entry != "step" and parameters[number].shape == (1,):
                    value = value.view(1)  # soft routing's scale had shape () in earlier versions
                loaded[entry] = value


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names of an optimiser's parameters in the order of its groups, as PyTorch numbers them."""
    return _names_in(model, optimizer.param_groups)


def _names_in(model: nn.Module, groups: list[dict[str, Any]]) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in groups for parameter in group["params"]]


def _split_entry(name: str, parameters: Mapping[str, int]) -> tuple[str, str]:
    """Splits PARAMETER.ENTRY; both may contain dots.

    **Raises:** ValueError if the name does not start with a parameter's name.
    """
    places = [place for place, letter in enumerate(name) if letter == "."]
    for place in places:
        if name[:place] in parameters:
            return name[:place], name[place + 1 :]
    raise ValueError(f"the checkpoint is of another network than the recipe's: {name} belongs to no trained parameter")


def _groups(model: nn.Module, recipe: Recipe, undecayed: set[str]) -> list[dict[str, Any]]:
    """Parameter groups, each with one weight decay and one learning rate. `lr_scale`: learning rate of the group ÷ the
    recipe's. `undecayed`: names of the parameters that get no weight decay, besides vectors."""
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    decays = recipe.weight_decay if isinstance(recipe.weight_decay, tuple) else ()
    for field, pairs in (("weight_decay", decays), ("learning_rates", recipe.learning_rates)):
        for pattern, _ in pairs:
            _check_matches(any(re.search(pattern, name) for name in names.values()), field, pattern, model)
    groups = []
    for group in _timm_groups(model, recipe, undecayed):
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


def _timm_groups(model: nn.Module, recipe: Recipe, undecayed: set[str]) -> list[dict[str, Any]]:
    """timm's parameter groups: with and without weight decay and, with layer decay, by block. The recipe's patterns are
    not applied."""
    decay = 0.0 if isinstance(recipe.weight_decay, tuple) else recipe.weight_decay
    if recipe.layer_decay == 1:
        return param_groups_weight_decay(model, decay, no_weight_decay_list=undecayed)
    return param_groups_layer_decay(model, decay, no_weight_decay_list=undecayed, layer_decay=recipe.layer_decay)


def _first_match(pairs: tuple[tuple[str, float], ...], name: str, default: float) -> float:
    """The value of the first pattern that matches the name; `default` if none does."""
    return next((value for pattern, value in pairs if re.search(pattern, name)), default)


def _check_matches(matches: bool, field: str, pattern: str, model: nn.Module) -> None:
    if not matches:
        names = ", ".join([name for name, parameter in model.named_parameters() if parameter.requires_grad][:3])
        raise ValueError(f"{field}={pattern!r} matches no parameter; their names are {names}, …")
