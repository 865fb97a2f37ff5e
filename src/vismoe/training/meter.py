"""How fast and how well a training goes."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .recipe import Recipe
from .step import Outcome


@dataclass(frozen=True)
class Status:
    """Where a training stands. `accuracy`: the task's training metric on recent batches, None where it has none;
    `score`: the primary metric on the validation split, at the last evaluation; `load`: each expert's share of its
    layer's choices, by layer."""

    step: int
    steps: int
    loss: float
    accuracy: float | None
    score: float | None
    images_per_second: float
    seconds_left: float
    load: dict[str, list[float]]


class Meter:
    """Loss, accuracy and speed since the last status."""

    def __init__(self, recipe: Recipe, first: int = 0):
        self.recipe, self.first = recipe, first
        self.outcomes: list[Outcome] = []
        self.begun = self.last = time.perf_counter()
        self.pause = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count as training time."""
        start = time.perf_counter()
        yield
        self.pause += time.perf_counter() - start

    def status(self, step: int, load: dict[str, Tensor], score: float | None) -> Status:
        now = time.perf_counter()
        elapsed = now - self.begun
        score_of_batches = torch.stack([outcome.score for outcome in self.outcomes]).mean().item()
        status = Status(
            step=step,
            steps=self.recipe.steps,
            loss=torch.stack([outcome.loss for outcome in self.outcomes]).mean().item(),
            accuracy=score_of_batches if math.isfinite(score_of_batches) else None,
            score=score,
            images_per_second=len(self.outcomes) * self.recipe.batch_size / (now - self.last - self.pause),
            seconds_left=elapsed / (step - self.first) * (self.recipe.steps - step),
            load={name: (counts / counts.sum()).tolist() for name, counts in load.items()},
        )
        self.last, self.pause, self.outcomes = now, 0.0, []
        return status
