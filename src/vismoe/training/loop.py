"""Recipe in, run out."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import timm.optim
import timm.scheduler
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vismoe.data import Data, open_data, training_batches, training_transform
from vismoe.explain import routing_pictures
from vismoe.moe import MoE, Recording, record
from vismoe.weights import create_model, save

from .evaluation import Evaluation, data_config, evaluate, resolve_device
from .recipe import Recipe
from .report import draw_confusion, draw_curves
from .run import MODEL, SUMMARY, Run

LOG_EVERY = 20


@dataclass(frozen=True)
class Status:
    """Where a training stands. `accuracy`: on recent training batches; `top1`: on the held-out part, at the last
    evaluation; `load`: each expert's share of its layer's choices, by layer."""

    step: int
    steps: int
    loss: float
    accuracy: float
    top1: float | None
    images_per_second: float
    seconds_left: float
    load: dict[str, list[float]]


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a finite number."""


def fit(recipe: Recipe, out: Path, watch: Callable[[Status], None] | None = None) -> Run:
    """Trains as `recipe` says and leaves a run folder at `out`. `watch` is told the status every few steps.

    **Raises:** FileExistsError where `out` exists; ValueError, FileNotFoundError where the recipe cannot be followed:
    all before anything is written. TrainingDivergedError where the loss is not finite any more.
    """
    device = resolve_device(recipe.device)
    data = open_data(recipe.data, recipe.split_seed)
    if data.train is None:
        raise ValueError(f"{recipe.data}: expected {recipe.data}/train/CLASS/… to train on and /val/CLASS/… held out")
    if len(data.classes) < 2:
        raise ValueError(f"{recipe.data} has one class, {data.classes[0]}: a classifier needs at least two")
    model = build(recipe, data).to(device)
    run = Run.create(out, recipe)
    evaluation = _optimise(run, recipe, model, data, watch or (lambda status: None))
    config = data_config(model)
    save(model, run.path / MODEL, label_names=data.classes, preprocessing=config)
    finish(run, model, data, evaluation)
    return run


def build(recipe: Recipe, data: Data) -> nn.Module:
    """The recipe's network with initial weights: a function of its seed alone."""
    channels = 1 if recipe.data == "digits" else 3
    torch.manual_seed(recipe.seed)
    return create_model(recipe.model, num_classes=len(data.classes), in_chans=channels, **recipe.overrides)


def _optimise(run: Run, recipe: Recipe, model: nn.Module, data: Data, watch: Callable[[Status], None]) -> Evaluation:
    assert data.train is not None
    device = next(model.parameters()).device
    optimizer = timm.optim.create_optimizer_v2(
        model, opt="adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=recipe.steps, warmup_epochs=recipe.warmup_steps, warmup_lr=0.0
    )
    transform = training_transform(data_config(model), recipe.degrees, recipe.translate, recipe.scale, recipe.shear)
    batches = iter(training_batches(data.train, transform, recipe.batch_size, recipe.seed, recipe.workers))
    by_losses = any(isinstance(layer, MoE) and layer.router.balance == "loss" for layer in model.modules())
    # Twins draw a different number of random values for their weights; from here on they draw the same.
    torch.manual_seed(recipe.seed)
    evaluation, meter = None, _Meter(recipe)
    every = min(LOG_EVERY, max(1, recipe.steps // 20))  # short runs have curves too
    for step in range(1, recipe.steps + 1):
        pictures, labels = (part.to(device, non_blocking=True) for part in next(batches))
        model.train()
        logging = step % every == 0 or step == recipe.steps
        with record(model) if by_losses or logging else nullcontext() as routing:
            loss, logits = _loss(recipe, model, pictures, labels)
            total = loss + routing.auxiliary_loss if by_losses and routing is not None else loss
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step(step)
        meter.add(loss, logits, labels)
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            with meter.paused():
                evaluation = evaluate(model, data.val)
            run.log({"step": step, "top1": evaluation.top1, "val_loss": evaluation.loss})
        if logging and routing is not None:
            status = meter.status(step, routing, None if evaluation is None else evaluation.top1)
            run.log({"step": step, "loss": status.loss, "accuracy": status.accuracy, "load": status.load})
            if not math.isfinite(status.loss):
                raise TrainingDivergedError(f"the loss is {status.loss} at step {step}: try a smaller learning rate")
            watch(status)
    assert evaluation is not None
    return evaluation


def _loss(recipe: Recipe, model: nn.Module, pictures: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=recipe.dtype == "bfloat16"):
        logits = model(pictures).float()
    return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing), logits


class _Meter:
    """Loss, accuracy and speed since the last status."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.begun = self.last = time.perf_counter()
        self.pause = 0.0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.losses.append(loss.detach())
        self.hits.append((logits.detach().argmax(1) == labels).float().mean())

    def paused(self) -> "_Pause":
        return _Pause(self)

    def status(self, step: int, routing: Recording, top1: float | None) -> Status:
        now = time.perf_counter()
        elapsed = now - self.begun
        status = Status(
            step=step,
            steps=self.recipe.steps,
            loss=torch.stack(self.losses).mean().item(),
            accuracy=torch.stack(self.hits).mean().item(),
            top1=top1,
            images_per_second=len(self.losses) * self.recipe.batch_size / (now - self.last - self.pause),
            seconds_left=elapsed / step * (self.recipe.steps - step),
            load={
                name: (calls[-1].load / calls[-1].load.sum()).tolist()
                for name, calls in routing.layers.items()
                if calls
            },
        )
        self.last, self.pause, self.losses, self.hits = now, 0.0, [], []
        return status


class _Pause:
    def __init__(self, meter: _Meter):
        self.meter = meter

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.meter.pause += time.perf_counter() - self.start


def finish(run: Run, model: nn.Module, data: Data, evaluation: Evaluation) -> None:
    """Writes a finished run's summary and pictures."""
    run.write(
        SUMMARY,
        {
            "top1": evaluation.top1,
            "val_loss": evaluation.loss,
            "held_out_images": len(data.val),
            "images_per_second": evaluation.images_per_second,
            "load": evaluation.load,
        },
    )
    draw_curves(run.metrics, run.path / "curves.png")
    draw_confusion(evaluation.labels, evaluation.predictions, data.classes, run.path / "confusion.png")
    routing_pictures(model, data.val, data.classes, data_config(model), run.path)
