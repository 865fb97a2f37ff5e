"""One optimiser step."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vismoe.data import Batch, mix_seeds
from vismoe.moe import MoE, Recording, record
from vismoe.parallel import Mesh
from vismoe.parallel.all_to_all import measured_exchanges
from vismoe.parallel.clipping import clip_grad_norm_
from vismoe.tasks import Task

from .recipe import Recipe
from .schedule import learning_rate
from .state import State


class TrainingDivergedError(RuntimeError):
    """The loss or the gradient was not finite in too many steps in a row."""


@dataclass(frozen=True)
class Outcome:
    """The result of a step over all processes.

    - `loss`: mean loss of the batch, a scalar tensor.
    - `score`: training score of the task, a scalar tensor; NaN if it has none.
    - `load`: by layer, the number of choices that each expert got; None if the step is not logged.
    - `exchanges`: of a distributed network, by process: "rows", the number of rows that its experts got, and "share",
      the fraction of the step that it spent in the exchanges of its forward passes. Empty if the step is not logged.
    """

    loss: Tensor
    score: Tensor
    load: dict[str, Tensor] | None
    exchanges: Sequence[dict[str, float]] = ()


class Trainer:
    """Runs optimiser steps. If the loss or the gradient of a step is not finite, the step is skipped: the weights do
    not change, and the step is counted and logged.

    **Arguments:**

    - `recipe`: the recipe.
    - `state`: the training state; updated by every step.
    - `task`: the task.
    - `mesh`: the processes that share each batch.
    - `log`: called with a dictionary for each skipped step.
    """

    def __init__(self, recipe: Recipe, state: State, task: Task, mesh: Mesh, log: Callable[[dict[str, Any]], None]):
        self.recipe, self.state, self.task, self.mesh, self.log = recipe, state, task, mesh, log
        self.device = next(state.model.parameters()).device
        self.distributed = recipe.expert_parallel > 1
        self.network = (state.model if self.distributed else mesh.replicate(state.model)).train()
        norms = [module for module in state.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]
        self.by_losses = any(isinstance(m, MoE) and m.router.balance == "loss" for m in state.model.modules())

    def on_device(self, batch: Batch) -> Batch:
        """A batch on the device of the model."""
        return {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    def step(self, batch: Batch, log_now: bool) -> Outcome:
        """Runs one optimiser step, number `state.step`: forward, backward, update.

        **Arguments:**

        - `batch`: this process's share of the batch, on the device of the model.
        - `log_now`: whether to record the load of the experts.

        **Raises:** TrainingDivergedError if `max_skipped` steps in a row were skipped.
        """
        recipe, state = self.recipe, self.state
        seed = mix_seeds(recipe.seed, state.step)
        # On a CPU this gives the same numbers as torch.manual_seed, and is a hundred times faster.
        generators: Any = torch.default_generator if self.device.type == "cpu" else torch
        generators.manual_seed(seed + self.mesh.rank)
        rate = learning_rate(recipe, state.step - 1)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        statistics = [buffer.clone() for buffer in self.statistics]
        losses, scores, started = [], [], time.perf_counter()
        load: dict[str, Tensor] | None = {} if log_now else None
        measuring = measured_exchanges(state.model) if self.distributed and log_now else nullcontext()
        with measuring as clock:
            for micro_batch, fraction, is_last in _micro_batches(self.task.prepare(batch, seed), recipe.accumulate):
                with nullcontext() if is_last else self.mesh.no_sync(self.network):
                    loss, score, routing = self._micro_step(micro_batch, fraction, log_now)
                if load is not None and routing is not None:
                    load = {name: load.get(name, 0) + calls[-1].load for name, calls in routing.layers.items()}
                losses.append(loss * fraction)
                scores.append(score * fraction)
        loss, score = self.mesh.mean(torch.stack([torch.stack(losses).sum(), torch.stack(scores).sum()]))
        self._update(loss, statistics)
        if load is not None:
            load = {name: self.mesh.sum(counts) for name, counts in load.items()}
        exchanges: Sequence[dict[str, float]] = ()
        if clock is not None:
            seconds = time.perf_counter() - started
            exchanges = self.mesh.gather({"rows": clock.rows, "share": clock.seconds / seconds})
        return Outcome(loss, score, load, exchanges)

    def _micro_step(self, batch: Batch, fraction: float, log_now: bool) -> tuple[Tensor, Tensor, Recording | None]:
        """Runs forward and backward for a micro-batch. Returns its loss, its score and the recorded routing."""
        task = self.task
        recording = record(self.state.model) if self.by_losses or log_now else nullcontext()
        with recording as routing:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16"):
                outputs = task.forward(self.network, batch)
            loss = task.loss(outputs, batch)
        balanced = loss + routing.auxiliary_loss if self.by_losses and routing is not None else loss
        (balanced * fraction).backward()
        with torch.no_grad():
            score = task.training_score(outputs, batch)
        return loss.detach(), loss.new_full((), math.nan) if score is None else score, routing

    def _update(self, loss: Tensor, statistics: list[Tensor]) -> None:
        state, recipe = self.state, self.recipe
        norm = clip_grad_norm_(state.model.parameters(), recipe.clip_norm or math.inf)
        # The only time that a step waits for the device: whether the weights may change must be known before they do.
        if bool(torch.isfinite(torch.stack([loss, norm])).all()):
            state.in_a_row = 0
            state.optimizer.step()
            if state.average is not None:
                state.average.update(state.model, state.step if recipe.average_warmup else None)
        else:
            for buffer, saved in zip(self.statistics, statistics, strict=True):
                buffer.copy_(saved)  # undo: the forward pass has updated the batch norm statistics
            state.skipped, state.in_a_row = state.skipped + 1, state.in_a_row + 1
            fault = f"the loss is {loss:g}" if not math.isfinite(loss) else f"the gradient norm is {norm:g}"
            self.log({"step": state.step, "skipped": fault})
            if state.in_a_row >= recipe.max_skipped:
                raise TrainingDivergedError(
                    f"{fault} at step {state.step}, {state.in_a_row} steps in a row were skipped: "
                    "try a smaller learning rate"
                )
        state.optimizer.zero_grad()


def _micro_batches(batch: Batch, count: int) -> Iterator[tuple[Batch, float, bool]]:
    """Splits a batch into `count` micro-batches. Yields each with its fraction of the batch, and whether it is the
    last."""
    chunks = {name: _chunks(value, count) for name, value in batch.items()}
    sizes = [len(chunk) for chunk in next(iter(chunks.values()))]
    for number, size in enumerate(sizes):
        micro_batch = {name: values[number] for name, values in chunks.items()}
        yield micro_batch, size / sum(sizes), number == len(sizes) - 1


def _chunks(values: Any, count: int) -> Sequence[Any]:
    """Splits a value of a batch, a tensor or a list, into `count` chunks."""
    if isinstance(values, Tensor):
        return values.chunk(count)
    size = -(-len(values) // count)
    return [values[start : start + size] for start in range(0, len(values), size)]
