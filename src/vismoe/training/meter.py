"""How fast and how well a training goes."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from vismoe.moe import Recording

from .recipe import Recipe


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


class Meter:
    """Loss, accuracy and speed since the last status."""

    def __init__(self, recipe: Recipe, first: int = 0):
        self.recipe, self.first = recipe, first
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.begun = self.last = time.perf_counter()
        self.pause = 0.0

    def add(self, loss: Tensor) -> None:
        self.losses.append(loss.detach())

    def hit(self, logits: Tensor, labels: Tensor) -> None:
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
            seconds_left=elapsed / (step - self.first) * (self.recipe.steps - step),
            load={
                name: (calls[-1].load / calls[-1].load.sum()).tolist()
                for name, calls in routing.layers.items()
                if calls
            },
        )
        self.last, self.pause, self.losses, self.hits = now, 0.0, [], []
        return status


class _Pause:
    def __init__(self, meter: Meter):
        self.meter = meter

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.meter.pause += time.perf_counter() - self.start
