"""What a run begins with."""

import timm.optim
import torch
from timm.utils import ModelEmaV3
from torch import nn

from vismoe.data import Data
from vismoe.weights import create_model

from .recipe import Recipe
from .state import State


def build(recipe: Recipe, data: Data) -> nn.Module:
    """The recipe's network with initial weights: a function of its seed alone."""
    torch.manual_seed(recipe.seed)
    return create_model(recipe.model, num_classes=len(data.classes), in_chans=data.channels, **recipe.overrides)


def begin(model: nn.Module, recipe: Recipe) -> State:
    """The state of a run before its first step."""
    optimizer = timm.optim.create_optimizer_v2(
        model,
        opt=recipe.optimizer,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay if recipe.layer_decay < 1 else None,
    )
    return State(model, optimizer, ModelEmaV3(model, recipe.average_decay) if recipe.average_decay else None)
