"""The training state: everything that changes during training."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from vismoe.data import Data
from vismoe.parallel.sharding import parallelize
from vismoe.tasks import Task, task_for
from vismoe.weights import create_model, data_config, open_trained, set_max_level, take_over

from .optimizer import freeze, load_named_state, make_optimizer, named_state
from .recipe import Recipe

NUMBERS = ("step", "skipped", "in_a_row", "best_score", "best_loss", "best_step", "best_score_step")


@dataclass
class State:
    """The state that a checkpoint stores. Everything else follows from the recipe.

    Random state is not stored: the random numbers of a step depend only on (seed, step), those of an image on (seed,
    epoch, index).

    - `model`: the network in training.
    - `optimizer`: its optimiser.
    - `average`: the EMA of the weights; None: no EMA.
    - `step`: number of optimiser steps done, including skipped ones.
    - `skipped`: number of skipped steps, whose loss or gradient was not finite.
    - `in_a_row`: number of steps skipped since the last step that was not.
    - `best_score`: best validation score so far; -1 before the first evaluation.
    - `best_loss`: validation loss of the best step; None before the first evaluation, and if the task has no loss.
    - `best_step`: the best step: of those with the best validation score, the one with the lowest validation loss, and
      of these the earliest. None before the first evaluation.
    - `best_score_step`: the earliest step with the best validation score, from which early stopping counts; None before
      the first evaluation.
    """

    model: nn.Module
    optimizer: Optimizer
    average: ModelEmaV3 | None
    step: int = 0
    skipped: int = 0
    in_a_row: int = 0
    best_score: float = -1.0
    best_loss: float | None = None
    best_step: int | None = None
    best_score_step: int | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and saved: the EMA if there is one, otherwise the network in training."""
        return self.model if self.average is None else self.average.module

    def update_best(self, score: float, loss: float | None) -> bool:
        """Compares the evaluation after this step with the best one so far.

        **Arguments:**

        - `score`: validation score; larger is better. NaN, an undefined score, is never the best.
        - `loss`: validation loss, which decides between equal scores; None: there is none, and the earlier step is
          kept, except if the score is 0: nothing is learnt yet, and later weights are better.

        **Returns:** whether this step is the best so far.
        """
        if math.isnan(score):
            return False
        if score > self.best_score:
            self.best_score_step = self.step
        elif score < self.best_score or not self._is_better_tie(score, loss):
            return False
        self.best_score, self.best_loss, self.best_step = score, loss, self.step
        return True

    def _is_better_tie(self, score: float, loss: float | None) -> bool:
        """Whether this step is better than the best one, which has the same score."""
        if loss is None:
            return score == 0
        return self.best_loss is not None and loss < self.best_loss

    @property
    def template(self) -> Callable[[str, torch.Size, torch.dtype], Tensor] | None:
        """Makes the tensors into which a checkpoint of a distributed network is read: those of a parameter, and of an
        optimiser's entry of its shape, are distributed as the parameter is. None: the network is not distributed."""
        parameters = dict(self.model.named_parameters())
        if not any(hasattr(parameter, "device_mesh") for parameter in parameters.values()):
            return None

        def make(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
            part, _, rest = name.partition(".")
            parameter = parameters.get(rest.rpartition(".")[0] if part == "optimizer" else rest)
            if parameter is None or parameter.shape != shape:
                return torch.empty(shape, dtype=dtype)
            return torch.empty_like(parameter, dtype=dtype, requires_grad=False)

        return make

    def state_dict(self) -> dict[str, Any]:
        """The state by name: model.*, average.*, optimizer.PARAMETER.ENTRY, optimizer.groups, and the numbers. Tensors
        are not copied."""
        parts = {"model": self.model.state_dict(), "optimizer": named_state(self.model, self.optimizer)}
        if self.average is not None:
            parts["average"] = self.average.module.state_dict()
        named = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        return named | {name: getattr(self, name) for name in NUMBERS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads a state that `state_dict` returned.

        **Raises:** ValueError for the state of another network.
        """
        parts: dict[str, dict[str, Any]] = {"model": {}, "average": {}, "optimizer": {}}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if rest:
                parts[part][rest] = value
        try:
            self.model.load_state_dict(parts["model"])
            if self.average is not None:
                self.average.module.load_state_dict(parts["average"])
        except RuntimeError as error:
            raise ValueError("the checkpoint is of another network than the recipe's") from error
        load_named_state(self.model, self.optimizer, parts["optimizer"])
        # Checkpoints of older versions have neither of these two.
        numbers = {"best_loss": None, "best_score_step": state["best_step"]} | dict(state)
        for name in NUMBERS:
            setattr(self, name, numbers[name])


def build(recipe: Recipe, data: Data, task: Task | None = None) -> nn.Module:
    """Builds the recipe's network. The initial weights depend only on the recipe's `seed` and `weights`.

    **Arguments:**

    - `recipe`: the recipe.
    - `data`: the data set; it determines the number of classes and channels.
    - `task`: the task; default: the recipe's.
    """
    torch.manual_seed(recipe.seed)
    task = task or task_for(recipe.task, data, recipe.to_json())
    model = create_model(recipe.model, **task.network_options(data), **recipe.overrides)
    if recipe.weights:
        trained = open_trained(recipe.weights)
        take_over(model, trained, recipe.weights)
        if (max_level := data_config(trained).get("max_level")) is not None:
            set_max_level(model, max_level)
    if recipe.max_level is not None:
        set_max_level(model, recipe.max_level)
    return task.network(model)


def begin(model: nn.Module, recipe: Recipe) -> State:
    """Creates the state before the first step. Freezes the parameters that match the recipe's `frozen`, and distributes
    network and EMA over all processes if its `expert_parallel` is more than 1."""
    if recipe.frozen:
        freeze(model, recipe.frozen)
    distributes, average = recipe.expert_parallel > 1, None
    if recipe.average_decay:  # copied before the network is distributed; afterwards it cannot be
        average = ModelEmaV3(model, recipe.average_decay, use_warmup=recipe.average_warmup, foreach=not distributes)
    if distributes:
        for network in (model, *([] if average is None else [average.module])):
            parallelize(network, ep=recipe.expert_parallel)
    return State(model, make_optimizer(model, recipe), average)
