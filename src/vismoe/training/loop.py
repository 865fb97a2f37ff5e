"""The training loop: trains by a recipe and writes a run folder."""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vismoe.data import (
    Batch,
    Data,
    ImageSet,
    check_batch_size,
    check_images,
    evaluation_batches,
    find_group_column,
    find_name_groups,
    format_classes,
    format_group_column,
    format_name_groups,
    format_reasons,
    format_unnamed,
    note_of_levels,
    shared_groups,
    training_batches,
    without_files,
)
from vismoe.files import counted
from vismoe.files.checksums import sha256_of_package
from vismoe.inference import evaluate
from vismoe.moe import biased_routers, keeping_balance, rebalance
from vismoe.parallel import Mesh, Stop, free_memory, join_mesh, resolve_device, signal_name
from vismoe.parallel.hung import limited_patience
from vismoe.tasks import Evaluation, Task, open_for, task_for
from vismoe.vit import evaluating, unfused_attention
from vismoe.weights import data_config

from .checkpointer import Checkpointer
from .meter import Meter, Status
from .recipe import Recipe
from .report import write_report
from .run import CHECKPOINTS, DATA, MODEL, SPLIT, Run
from .state import State, begin, build
from .step import Trainer
from .tracker import check_tracker, tracking

LOG_EVERY = 20
"""Steps between two lines of the log; fewer in runs of less than 400 steps."""
REBALANCE_BATCHES = 32
"""Number of training batches that balance the experts of an EMA before it is evaluated or saved."""
SHRINK_WARNING = 4
"""Both sides of the images ÷ those of the network's input, from which on a warning is printed."""


class TrainingStoppedError(RuntimeError):
    """Training was stopped by a signal. A checkpoint was written before.

    - `signal`: number of the signal.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.signal = number

    def __reduce__(self) -> tuple[Any, ...]:  # it is sent between processes
        return type(self), (self.signal, str(self))


def fit(
    recipe: Recipe,
    out: Path,
    on_status: Callable[[Status], None] | None = None,
    resume: bool = False,
    data: Data | None = None,
    network: Callable[[], nn.Module] | None = None,
    extra_eval: Mapping[str, ImageSet] | None = None,
    log: Callable[[str], None] | None = None,
) -> Run:
    """Trains by a recipe and writes a run folder.

    With several processes (`torchrun`), each process computes its share of every batch, and the main process writes the
    run folder.

    **Arguments:**

    - `recipe`: the recipe.
    - `out`: the run folder.
    - `on_status`: called with a `Status` every few steps; default: no call.
    - `resume`: whether to resume the run in `out` from its newest undamaged checkpoint, or from the beginning if there
      is none; default False. The result is bit-identical to that of an uninterrupted run. `steps` and `cooldown_steps`
      may change if all steps already done would have had the same learning rates.
    - `data`: the data set, instead of the recipe's; all images must be readable (see `vismoe.data.fingerprint_all`).
      Default: the recipe's.
    - `network`: function that returns the network to train, instead of the recipe's; parameters with `requires_grad`
      False are not trained. Default: the recipe's.
    - `extra_eval`: additional image sets by name. They are evaluated whenever the validation split is, and logged as
      NAME/METRIC; they are never used for selection. Default: none.
    - `log`: called with each line of text about the data set, before the first step; default: no call.

    **Returns:** the finished `Run`. If the data set has a test split, the entry "test" of its summary has the metrics
    of the final weights on it.

    **Raises:**

    - FileExistsError if `out` exists and `resume` is False; before anything is written.
    - ValueError, FileNotFoundError if the recipe cannot be used, too many files are unreadable, or the run to resume
      has another recipe or data set; before anything is written.
    - TrainingDivergedError if the loss or the gradient is not finite in too many steps in a row.
    - TrainingStoppedError after SIGTERM or SIGINT, when a checkpoint has been written. If the signal comes after the
      last step, a line on stderr says so, and the run is finished; a second signal stops at once.
    """
    check_tracker(recipe.track)
    with join_mesh() as mesh:
        _check_processes(mesh, recipe)
        device = mesh.device(resolve_device(recipe.device))
        # Images are decoded only after the network is built, so that errors in the recipe are found first.
        open_set = partial(open_for, recipe.task, recipe.data, recipe.split_seed, group_column=recipe.group_column)
        opened = open_set(moved=()) if data is None else data
        if opened.train is None:
            raise ValueError(f"{recipe.data} has no training split: expected the folder {recipe.data}/train")
        if data is None:
            _check_group_column(opened)
        task = task_for(recipe.task, opened, recipe.to_json())
        task.check(opened)
        recipe, changes = recipe.without(task.unused_settings, task.name)
        if changes and mesh.is_main:
            _warn(f"note: {changes}")
        extra_eval = _check_extra_eval(extra_eval or {}, task)
        check_batch_size(recipe.batch_size, mesh.size)
        state = begin((build(recipe, opened, task) if network is None else network()).to(device), recipe)
        run, moved, left_out = mesh.run_on_main(
            lambda: _open_run(recipe, state.model, out, opened, resume, None if data is not None else open_set)
        )
        if data is None and moved:
            opened = open_set(moved=moved)
        run, data = replace(run, writes=mesh.is_main), without_files(opened, left_out)
        task = task_for(recipe.task, data, recipe.to_json())
        if log is not None and mesh.is_main:
            _describe(data, state.model, log)
        unfuses = device.type == "cpu" and recipe.dtype == "bfloat16"
        answer = _warn if mesh.is_main else lambda text: None
        checkpoints = Checkpointer(
            run.path / CHECKPOINTS, recipe.keep_checkpoints, mesh, _warn, recipe.async_checkpoints
        )
        unfused = unfused_attention(state.model) if unfuses else nullcontext()
        with run.lock(), checkpoints as checkpointer, Stop(answer) as stop, unfused:
            if (saved := checkpointer.newest(state.template)) is not None:
                state.load_state_dict(saved)
                answer(f"resumed from step {state.step} of {recipe.steps}")
            run.truncate_metrics(state.step)
            run.update_length(recipe)
            with tracking(run, recipe, state.step) as track:
                trainer = Trainer(recipe, state, task, mesh, track)
                balance = AverageBalance(trainer, data.train_and_val[0])
                with limited_patience(mesh, recipe.hang_timeout):
                    evaluation = _optimise(
                        checkpointer, trainer, balance, data, extra_eval, stop, on_status if mesh.is_main else None
                    )
                checkpointer.wait()
                stop.finish(_rest_of_run(max(checkpointer.steps(), default=None)))
                if recipe.keep == "best" and (best_step := state.best_step) not in (None, state.step):
                    state.load_state_dict(checkpointer.load(best_step, state.template))
                    evaluation = _evaluate(trainer, balance, data.val)
                tested = None if data.test is None else _evaluate(trainer, balance, data.test)
                balance.update()
            if mesh.is_main or recipe.expert_parallel > 1:  # all processes have a part of a distributed network
                task.save(state.evaluated, run.path / MODEL)
            if mesh.is_main:
                write_report(run, state, task, data, evaluation, tested)
    return run


def _rest_of_run(checkpoint: int | None) -> str:
    """What is done after the last step, as an answer to a signal. `checkpoint`: the step of the newest checkpoint."""
    again = "from the beginning" if checkpoint is None else f"from the checkpoint of step {checkpoint}"
    return (
        "the training is done; the last evaluation and the report are being finished. A second signal stops at once; "
        f"the run can then be resumed, {again}"
    )


def _check_processes(mesh: Mesh, recipe: Recipe) -> None:
    """Raises ValueError if the processes have different recipes or programs, or cannot share experts as the recipe
    asks."""
    if mesh.size > 1:
        program = {"vismoe's code": sha256_of_package(), "the version of PyTorch": torch.__version__}
        mesh.check_agreement(recipe.to_json() | program)
    mesh.check_expert_parallel(recipe.expert_parallel)


def _describe(data: Data, model: nn.Module, log: Callable[[str], None]) -> None:
    """Logs the classes, the sizes of the splits, and the image size in training."""
    if classes := format_classes(data):
        log(classes)
    _, height, width = data_config(model)["input_size"]
    test = "" if data.test is None else f", {counted(len(data.test), 'test image')}"
    log(
        f"{counted(len(data.train_and_val[0]), 'training image')}, {counted(len(data.val), 'validation image')}{test}; "
        f"trained at {height} × {width} pixels"
    )
    if unnamed := format_unnamed(data):
        log(f"note: {unnamed}")


def _check_group_column(data: Data) -> None:
    """Raises ValueError if a group of the `group_column` is in both the training and the validation split. This happens
    only if the data set came with its splits: a random split keeps groups together."""
    if data.group_column is None or data.moved is not None or data.train is None:
        return
    if (shared := shared_groups(data.train, data.val, data.group_column)) is not None:
        raise ValueError(
            f"group_column={data.group_column!r}: {shared.shared} of {shared.evaluated} validation images of "
            f"{data.name} have a value that training images have too: move the files so that each value is "
            "in one split, or put all files into one folder without splits, which is then split at random"
        )


def _check_images_of_parent(recipe: Recipe, data: Data) -> None:
    """Raises ValueError if the run of the initial weights was trained on validation images of this run."""
    parent = Run.of(recipe.weights) if recipe.weights else None
    if parent is None or Path(parent.recipe.data).resolve() != Path(recipe.data).resolve():
        return
    old = parent.recipe
    if parent.test_files is not None:
        trained = {file for file, split in parent.read(SPLIT)["files"].items() if split == "train"}
        seed, advice = 0, "`vismoe finetune --from` keeps its split"
    else:
        parent_data = open_for(old.task, old.data, old.split_seed, moved=parent.moved)
        trained, seed = set(parent_data.train_and_val[0].files), old.split_seed
        grouped = "" if old.group_column is None else f" --group-column {old.group_column}"
        advice = f"--split-seed {seed}{grouped} keeps its split"
    shared = len(trained.intersection(data.val.files))
    if shared or (recipe.data == "digits" and recipe.split_seed != seed):
        number = f"{shared} of {len(data.val)}" if shared else "some"
        raise ValueError(
            f"weights={recipe.weights!r}: it was trained on {number} of the validation images, so metrics would be too "
            f"good: {advice}, or use other images with --data"
        )


def _check_extra_eval(extra_eval: Mapping[str, ImageSet], task: Task) -> Mapping[str, ImageSet]:
    """Returns `extra_eval`.

    **Raises:** ValueError for an image set that the task cannot evaluate.
    """
    for name, images in extra_eval.items():
        if not len(images):
            raise ValueError(f"extra_eval[{name!r}] has no images: expected at least one")
        task.check_extra_eval(name, images)
    return extra_eval


def _open_run(
    recipe: Recipe, model: nn.Module, out: Path, data: Data, resume: bool, open_set: Callable[..., Data] | None
) -> tuple[Run, Any, Any]:
    """Creates the run, or opens the run to resume.

    **Arguments:**

    - `recipe`, `out`, `resume`: as in `fit`.
    - `model`: the network to train.
    - `data`: the data set.
    - `open_set`: opens the data set again, if its images are not decoded yet; None if they are.

    **Returns:** the run, the files that were moved between the splits (see `Data.moved`), and the files left out.
    """
    if resume and Run.of(out) == Run(out):
        if open_set is not None and data.moved is not None:
            data = open_set(moved=Run(out).moved)
        run = Run.reopen(out, recipe, data, max(Checkpointer(out / CHECKPOINTS).steps(), default=0))
    else:
        Run.check_free(out)
        if open_set is not None:
            data = open_set(workers=recipe.workers) if data.moved is not None else data
            data = check_images(data, recipe.max_unreadable, recipe.workers)
            _warn_of_size(data, data_config(model)["input_size"][1:])
            if (shared := find_group_column(data, fewest=2)) is not None:
                _warn(format_group_column(shared))
            elif (by_name := find_name_groups(data)) is not None:
                _warn(f"note: {format_name_groups(by_name)}")
            if text := note_of_levels(data, data_config(model).get("max_level")):
                _warn(f"note: {text}")
        _check_images_of_parent(recipe, data)
        run = Run.create(out, recipe, data)
    if left_out := run.left_out:
        number = len(left_out)
        files = "1 file cannot be used and is" if number == 1 else f"{number} files cannot be used and are"
        if open_set is not None:  # otherwise `data` may be only a part of the set
            remaining = without_files(data, left_out)
            test = 0 if remaining.test is None else len(remaining.test)
            files = f"{number} of {number + sum(map(len, remaining.train_and_val)) + test} files cannot be used and are"
        _warn(f"{files} left out: {run.path / DATA} names them ({format_reasons(left_out)})")
    if open_set is not None:
        for text in data.notes:
            _warn(f"note: {text}")
    return run, data.moved, left_out


def _warn_of_size(data: Data, trained_at: tuple[int, int]) -> None:
    """Warns if the images are many times larger than the input of the network."""
    if data.typical_size is None:
        return
    (width, height), (to_height, to_width) = data.typical_size, trained_at
    if min(width / to_width, height / to_height) >= SHRINK_WARNING:
        _warn(
            f"note: images of about {width} × {height} pixels are resized to {to_width} × {to_height}, where details "
            "are lost: `vismoe train images` uses 64 × 64, and --image-size sets another size"
        )


def _warn(text: str) -> None:
    print(f"vismoe: {text}", file=sys.stderr)


def _optimise(
    checkpointer: Checkpointer,
    trainer: Trainer,
    balance: "AverageBalance",
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
                evaluation, logged = _evaluate_all(trainer, balance, data.val, extra_eval)
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
    return evaluation or _evaluate(trainer, balance, data.val)


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
        yield {name: _on_device(value, trainer) for name, value in batch.items()}


def _on_device(value: Any, trainer: Trainer) -> Any:
    return value.to(trainer.device, non_blocking=True) if isinstance(value, Tensor) else value


def _evaluate_all(
    trainer: Trainer, balance: "AverageBalance", val: ImageSet, extra_eval: Mapping[str, ImageSet]
) -> tuple[Evaluation, dict[str, float]]:
    """Evaluates the validation split and the additional image sets.

    **Returns:** the evaluation on the validation split, and all metrics to log; those of additional sets are named
    SET/METRIC.
    """
    evaluation = _evaluate(trainer, balance, val)
    logged = dict(evaluation.logged)
    for name, images in extra_eval.items():
        logged |= {f"{name}/{metric}": value for metric, value in _evaluate(trainer, balance, images).logged.items()}
    return evaluation, logged


def _evaluate(trainer: Trainer, balance: "AverageBalance", images: ImageSet) -> Evaluation:
    """Evaluates on `images`. The experts of an EMA are balanced for the evaluation; afterwards the balance is restored,
    so that training does not depend on the number of evaluations."""
    network, mesh = trainer.state.evaluated, trainer.mesh
    mesh.broadcast(network.buffers())  # batch norm statistics differ between processes
    with keeping_balance(network):
        balance.update()
        return evaluate(network, images, workers=trainer.recipe.workers, mesh=mesh, task=trainer.task)


class AverageBalance:
    """Balances the experts of the EMA, using training images transformed as in evaluation. The prepared batches are
    kept in memory, unless they need more than a quarter of the free memory. (A cache of images would not help data
    workers: what they decode is lost when they end.)

    **Arguments:**

    - `trainer`: the trainer.
    - `images`: the training split.
    """

    def __init__(self, trainer: Trainer, images: ImageSet):
        self.trainer, self.images = trainer, images
        self._kept: list[Batch] | None = None

    def update(self) -> None:
        """Adapts the balancing biases of the EMA to its weights."""
        state, task, mesh = self.trainer.state, self.trainer.task, self.trainer.mesh
        network = state.evaluated
        if state.average is None or not biased_routers(network):
            return
        batches = self._prepare() if self._kept is None else self._kept
        on_device = ({name: _on_device(value, self.trainer) for name, value in batch.items()} for batch in batches)
        frozen = [name for name, router in biased_routers(state.model).items() if router.is_frozen]
        with evaluating(network):
            rebalance(network, on_device, task.forward, mesh.sum, skip=frozen)

    def _prepare(self) -> Iterator[Batch]:
        """This process's share of the batches; keeps them if there is enough memory."""
        recipe, task, mesh = self.trainer.recipe, self.trainer.task, self.trainer.mesh
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(recipe.seed))
        number = (
            min(len(order), REBALANCE_BATCHES * recipe.batch_size) // mesh.size * mesh.size
        )  # the same number for each process
        places = order[:number][mesh.rank :: mesh.size].tolist()
        transform = task.evaluation_transform(data_config(self.trainer.state.evaluated))
        batches = evaluation_batches(
            self.images.subset(places), transform, recipe.batch_size // mesh.size, recipe.workers, task.collate
        )
        kept: list[Batch] | None = []
        for place, batch in enumerate(batches):
            if place == 0 and len(batches) * _bytes_of(batch) > free_memory(torch.device("cpu")) / 4:
                kept = None
            if kept is not None:  # tensors of data workers are copied: their shared memory is scarce
                kept.append({name: _unshared(value) for name, value in batch.items()})
            yield batch
        self._kept = kept


def _bytes_of(batch: Batch) -> int:
    values = [value for given in batch.values() for value in (given if isinstance(given, list) else [given])]
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def _unshared(value: Any) -> Any:
    """A value of a batch, with copies of tensors, and of those in lists, that are in shared memory."""
    if isinstance(value, list):
        return [_unshared(each) for each in value]
    return value.clone() if isinstance(value, Tensor) and value.is_shared() else value
