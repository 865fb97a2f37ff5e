"""The steps of a run: trains, logs, evaluates, writes checkpoints, stops."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vismoe.data import Batch, Data, ImageSet, training_batches
from vismoe.parallel import Stop, signal_name
from vismoe.tasks import Evaluation, Task
from vismoe.weights import data_config

from ..checkpointer import Checkpointer
from ..recipe import Recipe
from ..state import State
from ..step import Trainer
from .balance import AverageBalance
from .meter import Meter, Status

LOG_EVERY = 20
"""Steps between two lines of the log; fewer in runs of less than 400 steps."""


class TrainingStoppedError(RuntimeError):
    """Training was stopped by a signal. A checkpoint was written before.

    - `signal`: number of the signal.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.signal = number

    def __reduce__(self) -> tuple[Any, ...]:  # it is sent between processes
        return type(self), (self.signal, str(self))


def run_steps(
    checkpointer: Checkpointer,
    trainer: Trainer,
    balance: AverageBalance,
    data: Data,
    extra_eval: Mapping[str, ImageSet],
    stop: Stop,
    on_status: Callable[[Status], None] | None,
) -> Evaluation:
    """Runs the remaining steps: trains, logs, evaluates, writes checkpoints, stops.

    **Returns:** the last evaluation on the validation split.

    **Raises:** TrainingDivergedError, TrainingStoppedError.
    """
    recipe, state, mesh, log = trainer.recipe, trainer.state, trainer.mesh, trainer.log
    meter = Meter(recipe, state.step, "validation" if data.has_validation else "training")
    evaluation, evaluated_at = None, None
    log_every = min(LOG_EVERY, max(1, recipe.steps // 20))  # so that short runs have curves too
    for batch in _batches(trainer, data):
        state.step += 1
        last = state.step == recipe.steps
        outcome = trainer.step(batch, log_now=state.step % log_every == 0 or last)
        meter.outcomes.append(outcome)
        is_best = False
        if state.step % recipe.evaluate_every == 0 or last:
            with meter.paused():
                evaluation, logged = _evaluate_all(balance, data.val, extra_eval)
            evaluated_at = state.step
            log({"step": state.step} | logged)
            is_best = state.update_best(evaluation.score, evaluation.metrics.get("loss"))
        if outcome.load is not None:
            score = None if evaluation is None else evaluation.score
            status = meter.status(state.step, outcome.load, score, evaluated_at)
            log(_log_line(status, trainer.task))
            if on_status is not None:
                on_status(status)
        stop_signal = mesh.all_reduce_max(stop.requested or 0)
        if _is_due(recipe, state, is_best) or (stop_signal and not last):
            with meter.paused():
                checkpointer.save(state.step, state.state_dict(), state.best_step)
        if stop_signal and not last:
            checkpointer.wait()
            path = checkpointer.folder
            raise TrainingStoppedError(
                stop_signal,
                f"{signal_name(stop_signal)}: stopped after step {state.step} of {recipe.steps}; a checkpoint is in "
                f"{path}. To continue, repeat the command with --out {path.parent} --resume auto",
            )
        if recipe.patience and state.step - (state.best_score_step or 0) >= recipe.patience * recipe.evaluate_every:
            break
    return evaluation or balance.evaluate(data.val)


def _is_due(recipe: Recipe, state: State, is_best: bool) -> bool:
    """Whether to write a checkpoint after this step."""
    if is_best and (recipe.keep == "best" or recipe.checkpoint_every > 0):
        return True
    return recipe.checkpoint_every > 0 and state.step % recipe.checkpoint_every == 0


def _log_line(status: Status, task: Task) -> dict[str, Any]:
    """A status as a line of the run's metrics."""
    score = {} if status.accuracy is None else {str(task.training_metric): status.accuracy}
    exchanges = {"exchanges": list(status.exchanges)} if status.exchanges else {}
    return {"step": status.step, "loss": status.loss} | score | {"load": status.load} | exchanges


def _batches(trainer: Trainer, data: Data) -> Iterator[Batch]:
    """The remaining batches of the run: this process's share of each, on the device of the model."""
    recipe, state, task, mesh = trainer.recipe, trainer.state, trainer.task, trainer.mesh
    batches = training_batches(
        data.train_and_val[0],
        task.training_transform(data_config(state.model), recipe.augmentation),
        recipe.batch_size,
        recipe.seed,
        recipe.workers,
        start=state.step * recipe.batch_size,
        rank=mesh.rank,
        ranks=mesh.size,
        collate=task.collate,
    )
    for batch in itertools.islice(batches, recipe.steps - state.step):
        yield trainer.on_device(batch)


def _evaluate_all(
    balance: AverageBalance, val: ImageSet, extra_eval: Mapping[str, ImageSet]
) -> tuple[Evaluation, dict[str, float]]:
    """Evaluates the validation split and the additional image sets.

    **Returns:** the evaluation on the validation split, and all metrics to log; those of additional sets are named
    SET/METRIC.
    """
    evaluation = balance.evaluate(val)
    logged = dict(evaluation.logged)
    for name, images in extra_eval.items():
        logged |= {f"{name}/{metric}": value for metric, value in balance.evaluate(images).logged.items()}
    return evaluation, logged
