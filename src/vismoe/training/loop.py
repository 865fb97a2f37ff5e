"""Recipe in, run out."""

import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import timm.optim
import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from vismoe.data import Data, mix_seeds, open_data, training_batches, training_transform
from vismoe.explain import routing_pictures
from vismoe.moe import MoE, Recording, record
from vismoe.weights import create_model, save

from .checkpoint import keep_checkpoints, newest_checkpoint, write_checkpoint
from .evaluation import Evaluation, data_config, evaluate, resolve_device
from .meter import Meter, Status
from .recipe import Recipe
from .report import draw_confusion, draw_curves
from .run import CHECKPOINTS, MODEL, SUMMARY, Run
from .schedule import rate_after
from .state import State
from .stop import Stop, TrainingStoppedError

LOG_EVERY = 20


class TrainingDivergedError(RuntimeError):
    """Too many steps in a row had a loss or a gradient that was no finite number."""


def fit(recipe: Recipe, out: Path, watch: Callable[[Status], None] | None = None, resume: bool = False) -> Run:
    """Trains as `recipe` says and leaves a run folder at `out`. `watch` is told the status every few steps.

    **Arguments:** `resume`: go on from the newest checkpoint in `out` that is whole; from the beginning where there is
    none. The result is bit-equal to that of a run that was never interrupted.

    **Raises:** FileExistsError where `out` exists and `resume` is not said; ValueError, FileNotFoundError where the
    recipe cannot be followed, or is not the one of the run to resume: all before anything is written.
    TrainingDivergedError; TrainingStoppedError after SIGTERM or SIGINT, once a checkpoint is written.
    """
    device = resolve_device(recipe.device)
    data = open_data(recipe.data, recipe.split_seed)
    if data.train is None:
        raise ValueError(f"{recipe.data}: expected {recipe.data}/train/CLASS/… to train on and /val/CLASS/… held out")
    if len(data.classes) < 2:
        raise ValueError(f"{recipe.data} has one class, {data.classes[0]}: a classifier needs at least two")
    state = begin(build(recipe, data).to(device), recipe)
    run = Run.reopen(out, recipe) if resume and Run.of(out) == Run(out) else Run.create(out, recipe)
    found = newest_checkpoint(run.path / CHECKPOINTS, lambda text: print(f"vismoe: {text}", file=sys.stderr))
    if found is not None:
        state.restore(*found)
    run.forget_after(state.step)
    evaluation = _optimise(run, recipe, state, data, watch or (lambda status: None))
    save(state.evaluated, run.path / MODEL, label_names=data.classes, preprocessing=data_config(state.model))
    finish(run, state, data, evaluation)
    return run


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
    average = ModelEmaV3(model, decay=recipe.average_decay) if recipe.average_decay else None
    return State(model, optimizer, average)


def _optimise(run: Run, recipe: Recipe, state: State, data: Data, watch: Callable[[Status], None]) -> Evaluation:
    meter, evaluation = Meter(recipe, state.step), None
    every = min(LOG_EVERY, max(1, recipe.steps // 20))  # short runs have curves too
    with Stop() as stop:
        for pictures, labels in _batches(recipe, state, data):
            state.step += 1
            last = state.step == recipe.steps
            logging = state.step % every == 0 or last
            routing = _step(run, recipe, state, pictures, labels, meter, logging)
            best = False
            if state.step % recipe.evaluate_every == 0 or last:
                with meter.paused():
                    evaluation = evaluate(state.evaluated, data.val)
                run.log({"step": state.step, "top1": evaluation.top1, "val_loss": evaluation.loss})
                if best := evaluation.top1 > state.best_top1:
                    state.best_top1, state.best_step = evaluation.top1, state.step
            if logging and routing is not None:
                status = meter.status(state.step, routing, None if evaluation is None else evaluation.top1)
                run.log({"step": state.step, "loss": status.loss, "accuracy": status.accuracy, "load": status.load})
                watch(status)
            due = recipe.checkpoint_every and (best or state.step % recipe.checkpoint_every == 0)
            if due or (stop.asked and not last):
                with meter.paused():
                    write_checkpoint(run.path / CHECKPOINTS, state.step, state.tensors(), state.values())
                    keep_checkpoints(run.path / CHECKPOINTS, recipe.keep_checkpoints, state.best_step)
            if stop.asked and not last:
                name = signal.Signals(stop.asked).name
                raise TrainingStoppedError(stop.asked, f"{name}: stopped after step {state.step}, go on with resume")
    return evaluation or evaluate(state.evaluated, data.val)


def _batches(recipe: Recipe, state: State, data: Data) -> Iterator[tuple[Tensor, Tensor]]:
    """What is left of the run's stream of batches, on the model's device."""
    assert data.train is not None
    config, device = data_config(state.model), next(state.model.parameters()).device
    transform = training_transform(config, recipe.degrees, recipe.translate, recipe.scale, recipe.shear, recipe.flip)
    seen = state.step * recipe.batch_size
    batches = iter(training_batches(data.train, transform, recipe.batch_size, recipe.seed, recipe.workers, seen))
    for _ in range(recipe.steps - state.step):
        pictures, labels = next(batches)
        yield pictures.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _step(
    run: Run, recipe: Recipe, state: State, pictures: Tensor, labels: Tensor, meter: Meter, logging: bool
) -> Recording | None:
    """One optimiser step; what its last forward did, where that is asked for. Nothing that is not finite reaches the
    weights."""
    model, optimizer = state.model.train(), state.optimizer
    seed = mix_seeds(recipe.seed, state.step)
    torch.manual_seed(seed)
    rate = recipe.learning_rate * rate_after(recipe.schedule, state.step - 1, recipe.steps, recipe.warmup_steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
    mixed, targets = _mix(recipe, pictures, labels, model.num_classes, seed)
    by_losses = any(isinstance(layer, MoE) and layer.router.balance == "loss" for layer in model.modules())
    losses, observed = [], None
    parts = zip(*(whole.chunk(recipe.accumulate) for whole in (mixed, targets, labels)), strict=True)
    for part, target, label in parts:
        with record(model) if by_losses or logging else nullcontext() as routing:
            loss, logits = _loss(recipe, model, part, target)
        share, observed = len(part) / len(mixed), routing
        total = loss + routing.auxiliary_loss if by_losses and routing is not None else loss
        (total * share).backward()
        losses.append(loss.detach() * share)
        meter.hit(logits, label)
    loss_of_step = torch.stack(losses).sum()
    norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    meter.add(loss_of_step)
    if math.isfinite(loss_of_step) and math.isfinite(norm):
        state.in_a_row = 0
        optimizer.step()
        if state.average is not None:
            state.average.update(model)
    else:
        _skip(run, recipe, state, loss_of_step, norm)
    optimizer.zero_grad()
    return observed


def _skip(run: Run, recipe: Recipe, state: State, loss: Tensor, norm: Tensor) -> None:
    state.skipped, state.in_a_row = state.skipped + 1, state.in_a_row + 1
    what = f"the loss is {loss:g}" if not math.isfinite(loss) else f"the gradient's norm is {norm:g}"
    run.log({"step": state.step, "skipped": what})
    if state.in_a_row >= recipe.max_skipped:
        raise TrainingDivergedError(
            f"{what} at step {state.step}, {state.in_a_row} steps in a row were skipped: try a smaller learning rate"
        )


def _mix(recipe: Recipe, pictures: Tensor, labels: Tensor, classes: Any, seed: int) -> tuple[Tensor, Tensor]:
    """The batch as mixup and cutmix make it, where the recipe wants either; timm's draw from NumPy's generator."""
    if not (recipe.mixup or recipe.cutmix):
        return pictures, labels
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        mixed: tuple[Tensor, Tensor] = Mixup(
            recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=classes
        )(pictures, labels)
    finally:
        np.random.set_state(before)
    return mixed


def _loss(recipe: Recipe, model: nn.Module, pictures: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=recipe.dtype == "bfloat16"):
        logits = model(pictures).float()
    smoothing = 0.0 if targets.is_floating_point() else recipe.label_smoothing  # mixed targets are smooth already
    return F.cross_entropy(logits, targets, label_smoothing=smoothing), logits


def finish(run: Run, state: State, data: Data, evaluation: Evaluation) -> None:
    """Writes a finished run's summary and pictures."""
    run.write(
        SUMMARY,
        {
            "top1": evaluation.top1,
            "val_loss": evaluation.loss,
            "held_out_images": len(data.val),
            "images_per_second": evaluation.images_per_second,
            "load": evaluation.load,
            "skipped_steps": state.skipped,
        },
    )
    draw_curves(run.metrics, run.path / "curves.png")
    draw_confusion(evaluation.labels, evaluation.predictions, data.classes, run.path / "confusion.png")
    routing_pictures(state.evaluated, data.val, data.classes, data_config(state.model), run.path)
