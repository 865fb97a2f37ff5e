"""Recipe in, run out."""

import itertools
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vismoe.data import (
    Data,
    ImageSet,
    check_images,
    check_shares,
    open_data,
    training_batches,
    training_transform,
    without,
)
from vismoe.inference.evaluation import Evaluation, evaluate
from vismoe.inference.labels import save_classifier
from vismoe.parallel import World, join_world, resolve_device
from vismoe.weights import data_config

from .beginning import begin, build
from .checkpoint import (
    keep_checkpoints,
    list_checkpoints,
    newest_checkpoint,
    path_of,
    read_checkpoint,
    step_of,
    write_checkpoint,
)
from .meter import Meter, Status
from .recipe import Recipe
from .report import write_report
from .run import CHECKPOINTS, DATA, MODEL, Run
from .state import State
from .step import Trainer
from .stop import Stop, TrainingStoppedError
from .track import check_tracker, tracking

LOG_EVERY = 20


def fit(
    recipe: Recipe,
    out: Path,
    watch: Callable[[Status], None] | None = None,
    resume: bool = False,
    data: Data | None = None,
    network: Callable[[], nn.Module] | None = None,
    also: Mapping[str, ImageSet] | None = None,
) -> Run:
    """Trains as `recipe` says and leaves a run folder at `out`. `watch` is told the status every few steps.

    **Arguments:** `resume`: go on from the newest checkpoint in `out` that is whole; from the beginning where there is
    none. The result is bit-equal to that of a run that was never interrupted. Its steps and cooldown may be others than
    before where no step that is done would have had another rate. `data`, `network`: in place of what the recipe names;
    the set without what cannot be read (see `vismoe.data.check_images`), the network made as it is to be trained: what
    of it has no gradient stays as it is. `also`: further images of the same classes by a name, evaluated whenever the
    held-out part is: their figures are logged as NAME/FIGURE, and nothing is chosen by them.

    Of several processes that `torchrun` started each computes its share of every batch, and the first writes the run.

    **Raises:** FileExistsError where `out` exists and `resume` is not said; ValueError, FileNotFoundError where the
    recipe cannot be followed, too many files cannot be read, or the run to resume has another recipe or set: all before
    anything is written. TrainingDivergedError; TrainingStoppedError after SIGTERM or SIGINT, once a checkpoint is
    written.
    """
    check_tracker(recipe.track)
    with join_world() as world:
        device = world.device(resolve_device(recipe.device))
        # Not looked at before the network is built: what is wrong with the recipe is said first.
        opened = open_data(recipe.data, recipe.split_seed, moved=()) if data is None else data
        if opened.train is None:
            raise ValueError(f"{recipe.data} has a held-out part alone: expected {recipe.data}/train to train on")
        if len(opened.classes) < 2:
            raise ValueError(f"{recipe.data} has one class, {opened.classes[0]}: a classifier needs at least two")
        also = _checked(also or {}, opened)
        check_shares(recipe.batch_size, world.size)
        state = begin((build(recipe, opened) if network is None else network()).to(device), recipe)
        run, moved, left_out = world.from_leader(lambda: _open(recipe, out, opened, resume, data is None))
        if data is None and moved:
            opened = open_data(recipe.data, recipe.split_seed, moved=moved)
        run, data = replace(run, writes=world.leads), without(opened, left_out)
        with run.alone(), Stop() as stop:
            found = newest_checkpoint(run.path / CHECKPOINTS, _tell if world.leads else lambda text: None)
            if found is not None:
                state.restore(*found)
            run.forget_after(state.step)
            run.follow(recipe)
            with tracking(run, recipe, state.step) as log:
                trainer = Trainer(recipe, state, world, log, data.class_weights(recipe.class_weights))
                evaluation = _optimise(run, trainer, data, also, stop, watch if world.leads else None)
                if recipe.keep == "best" and state.best_step not in (None, state.step):
                    state.restore(*read_checkpoint(path_of(run.path / CHECKPOINTS, state.best_step)))
                    evaluation = _evaluate(recipe, state, data.val, world)
            if world.leads:
                save_classifier(state.evaluated, run.path / MODEL, data)
                write_report(run, state, data, evaluation)
    return run


def _checked(also: Mapping[str, ImageSet], data: Data) -> Mapping[str, ImageSet]:
    """Further images, each set labelled as the held-out part is.

    **Raises:** ValueError for another one.
    """
    for name, images in also.items():
        if not len(images):
            raise ValueError(f"also[{name!r}] has no image: expected one or more")
        if images.labels.shape[1:] != data.val.labels.shape[1:]:
            shapes = f"{tuple(images.labels.shape)}: expected {('N', *data.val.labels.shape[1:])}"
            raise ValueError(f"also[{name!r}] has labels of shape {shapes}, as the held-out part's")
        if not data.multi_label and not 0 <= images.labels.min() <= images.labels.max() < len(data.classes):
            given = f"labels {images.labels.min():d} to {images.labels.max():d}"
            raise ValueError(f"also[{name!r}] has {given}: expected numbers of classes, 0 to {len(data.classes) - 1}")
    return also


def _open(recipe: Recipe, out: Path, data: Data, resume: bool, unseen: bool) -> tuple[Run, Any, Any]:
    """The run to begin or go on with, the files of its set that changed sides (see `Data.moved`), and those that it
    does without; of an unseen set both are to be found, by decoding each image once."""
    split = unseen and data.moved is not None
    if resume and Run.of(out) == Run(out):
        if split:
            data = open_data(recipe.data, recipe.split_seed, moved=Run(out).moved)
        done = [step_of(checkpoint) for checkpoint in list_checkpoints(out / CHECKPOINTS)]
        run = Run.reopen(out, recipe, data, max(done, default=0))
    else:
        Run.refuse(out)
        if split:
            data = open_data(recipe.data, recipe.split_seed, recipe.workers)
        data = check_images(data, recipe.max_unreadable, recipe.workers) if unseen else data
        run = Run.create(out, recipe, data)
    if left_out := run.left_out:
        total = len(left_out) + sum(map(len, without(data, left_out).parts))
        _tell(f"{len(left_out)} of {total} files cannot be used and are left out: {run.path / DATA} names them")
    return run, data.moved, left_out


def _tell(text: str) -> None:
    print(f"vismoe: {text}", file=sys.stderr)


def _optimise(
    run: Run,
    trainer: Trainer,
    data: Data,
    also: Mapping[str, ImageSet],
    stop: Stop,
    watch: Callable[[Status], None] | None,
) -> Evaluation:
    recipe, state, world, log = trainer.recipe, trainer.state, trainer.world, trainer.log
    meter, evaluation = Meter(recipe, state.step), None
    every = min(LOG_EVERY, max(1, recipe.steps // 20))  # short runs have curves too
    for images, labels in _batches(recipe, state, data, world):
        state.step += 1
        last = state.step == recipe.steps
        outcome = trainer.step(images, labels, look=state.step % every == 0 or last)
        meter.outcomes.append(outcome)
        best = False
        if state.step % recipe.evaluate_every == 0 or last:
            with meter.paused():
                evaluation = _evaluate(recipe, state, data.val, world)
                further = {
                    name: _evaluate(recipe, state, further_set, world).logged for name, further_set in also.items()
                }
            named = {f"{name}/{figure}": value for name, found in further.items() for figure, value in found.items()}
            log({"step": state.step} | evaluation.logged | named)
            if best := evaluation.score > state.best_score:
                state.best_score, state.best_step = evaluation.score, state.step
        if outcome.load is not None:
            status = meter.status(state.step, outcome.load, None if evaluation is None else evaluation.score)
            log({"step": state.step, "loss": status.loss, "accuracy": status.accuracy, "load": status.load})
            if watch is not None:
                watch(status)
        asked = world.largest(stop.asked or 0)
        due = best if recipe.keep == "best" else best and recipe.checkpoint_every > 0
        due = due or (recipe.checkpoint_every > 0 and state.step % recipe.checkpoint_every == 0)
        if world.leads and (due or (asked and not last)):
            with meter.paused():
                write_checkpoint(run.path / CHECKPOINTS, state.step, state.tensors(), state.values())
                keep_checkpoints(run.path / CHECKPOINTS, state.step, recipe.keep_checkpoints, state.best_step)
        if asked and not last:
            name = signal.Signals(asked).name
            raise TrainingStoppedError(asked, f"{name}: stopped after step {state.step}; --resume auto goes on")
        if recipe.patience and state.step - (state.best_step or 0) >= recipe.patience * recipe.evaluate_every:
            break
    return evaluation or _evaluate(recipe, state, data.val, world)


def _batches(recipe: Recipe, state: State, data: Data, world: World) -> Iterator[tuple[Tensor, Tensor]]:
    """What is left of the run's stream of batches, this process's share of each, on the model's device."""
    device, seen = next(state.model.parameters()).device, state.step * recipe.batch_size
    transform, share = training_transform(data_config(state.model), **recipe.augmentation), (world.rank, world.size)
    batches = training_batches(data.parts[0], transform, recipe.batch_size, recipe.seed, recipe.workers, seen, *share)
    for batch in itertools.islice(batches, recipe.steps - state.step):
        yield batch["image"].to(device, non_blocking=True), batch["label"].to(device, non_blocking=True)


def _evaluate(recipe: Recipe, state: State, images: ImageSet, world: World) -> Evaluation:
    world.follow(state.evaluated.buffers())  # statistics of batch norm are each process's own
    return evaluate(state.evaluated, images, workers=recipe.workers, world=world)
