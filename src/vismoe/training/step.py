"""One optimiser step."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vismoe.data import Batch, mix_seeds
from vismoe.moe import MoE, Recording, record
from vismoe.parallel import Mesh
from vismoe.tasks import Task

from .recipe import Recipe
from .schedule import learning_rate
from .state import State


class TrainingDivergedError(RuntimeError):
    """Too many steps in a row had a loss or gradient that was not finite."""


@dataclass(frozen=True)
class Outcome:
    """The result of a step, over all processes.

    - `loss`: mean loss of the batch.
    - `score`: the task's training score; NaN where it has none.
    - `load`: number of choices that each expert got in the last micro-batch, by layer; None where the step is not
      logged.
    """

    loss: Tensor
    score: Tensor
    load: dict[str, Tensor] | None


class Trainer:
    """Runs optimiser steps. A step whose loss or gradient is not finite is skipped, counted and logged, and the weights
    do not change."""

    def __init__(self, recipe: Recipe, state: State, task: Task, mesh: Mesh, log: Callable[[dict[str, Any]], None]):
        self.recipe, self.state, self.task, self.mesh, self.log = recipe, state, task, mesh, log
        self.device = next(state.model.parameters()).device
        self.network = mesh.replicate(state.model).train()
        norms = [module for module in state.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]
        self.by_losses = any(isinstance(m, MoE) and m.router.balance == "loss" for m in state.model.modules())

    def step(self, batch: Batch, log_now: bool) -> Outcome:
        """One optimiser step, number `state.step`: forward, backward, update. `log_now`: whether to record the load."""
        recipe, state = self.recipe, self.state
        seed = mix_seeds(recipe.seed, state.step)
        # On a CPU this is the same as torch.manual_seed, a hundred times faster.
        generators: Any = torch.default_generator if self.device.type == "cpu" else torch
        generators.manual_seed(seed + self.mesh.rank)
        rate = learning_rate(recipe, state.step - 1)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        statistics = [buffer.clone() for buffer in self.statistics]
        losses, scores, routing = [], [], None
        for part, share, last in _micro_batches(self.task.prepare(batch, seed), recipe.accumulate):
            with nullcontext() if last else self.mesh.no_sync(self.network):
                loss, score, routing = self._micro_step(part, share, log_now)
            losses.append(loss * share)
            scores.append(score * share)
        loss, score = self.mesh.mean(torch.stack([torch.stack(losses).sum(), torch.stack(scores).sum()]))
        self._update(loss, statistics)
        load = None
        if log_now and routing is not None:
            load = {name: self.mesh.sum(calls[-1].load) for name, calls in routing.layers.items()}
        return Outcome(loss, score, load)

    def _micro_step(self, batch: Batch, share: float, log_now: bool) -> tuple[Tensor, Tensor, Recording | None]:
        """Forward and backward of a micro-batch. Returns its loss, its score and the recorded routing."""
        task = self.task
        recording = record(self.state.model) if self.by_losses or log_now else nullcontext()
        with recording as routing:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16"):
                outputs = task.forward(self.network, batch)
            loss = task.loss(outputs, batch)
        balanced = loss + routing.auxiliary_loss if self.by_losses and routing is not None else loss
        (balanced * share).backward()
        with torch.no_grad():
            score = task.training_score(outputs, batch)
        return loss.detach(), loss.new_full((), math.nan) if score is None else score, routing

    def _update(self, loss: Tensor, statistics: list[Tensor]) -> None:
        state, recipe = self.state, self.recipe
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_norm or math.inf)
        if math.isfinite(loss) and math.isfinite(norm):
            state.in_a_row = 0
            state.optimizer.step()
            if state.average is not None:
                state.average.update(state.model, state.step if recipe.average_warmup else None)
        else:
            for buffer, saved in zip(self.statistics, statistics, strict=True):
                buffer.copy_(saved)  # the forward pass has already updated batch norm statistics
            state.skipped, state.in_a_row = state.skipped + 1, state.in_a_row + 1
            fault = f"the loss is {loss:g}" if not math.isfinite(loss) else f"the gradient norm is {norm:g}"
            self.log({"step": state.step, "skipped": fault})
            if state.in_a_row >= recipe.max_skipped:
                raise TrainingDivergedError(
                    f"{fault} at step {state.step}, {state.in_a_row} steps in a row were skipped: "
                    "try a smaller learning rate"
                )
        state.optimizer.zero_grad()


def _micro_batches(batch: Batch, parts: int) -> Iterator[tuple[Batch, float, bool]]:
    """The micro-batches of a batch, each with its fraction of the batch and whether it is the last."""
    pieces_of = {name: _chunks(value, parts) for name, value in batch.items()}
    sizes = [len(part) for part in next(iter(pieces_of.values()))]
    for number, size in enumerate(sizes):
        yield {name: pieces[number] for name, pieces in pieces_of.items()}, size / sum(sizes), number == len(sizes) - 1


def _chunks(values: Any, parts: int) -> Sequence[Any]:
    """Splits an entry of a batch, a tensor or a list, into `parts` chunks."""
    if isinstance(values, Tensor):
        return values.chunk(parts)
    size = -(-len(values) // parts)
    return [values[start : start + size] for start in range(0, len(values), size)]
