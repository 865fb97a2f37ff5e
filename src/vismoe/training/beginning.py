"""What a run begins with."""

import torch
from timm.utils import ModelEmaV3
from torch import nn

from vismoe.data import Data
from vismoe.tasks import Task, task_for
from vismoe.weights import create_model, load_network, take_over

from .optimizer import freeze, make_optimizer
from .recipe import Recipe
from .state import State


def build(recipe: Recipe, data: Data, task: Task | None = None) -> nn.Module:
    """The recipe's network with initial weights: a function of its seed, and of the weights that it names, alone."""
    torch.manual_seed(recipe.seed)
    task = task or task_for(recipe.task, data, recipe.to_json())
    model = create_model(recipe.model, **task.network_options(data), **recipe.overrides)
    if recipe.weights:
        take_over(model, load_network(recipe.weights), recipe.weights)
    return model


def begin(model: nn.Module, recipe: Recipe) -> State:
    """The state of a run before its first step."""
    if recipe.frozen:
        freeze(model, recipe.frozen)
    optimizer = make_optimizer(model, recipe)
    average = None
    if recipe.average_decay:
        average = ModelEmaV3(model, recipe.average_decay, use_warmup=recipe.average_warmup)
    return State(model, optimizer, average)
