"""Progress of a training: loss, score and speed."""

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
    """Progress of a training.

    - `step`, `steps`: steps done, and steps of the run.
    - `loss`: mean training loss since the last status.
    - `accuracy`: the task's training metric since the last status; None where it has none.
    - `score`: primary metric on the validation split at the last evaluation; None before the first.
    - `images_per_second`: training images per second since the last status, without evaluations.
    - `seconds_left`: estimated time to the last step, in seconds.
    - `load`: fraction of the choices that each expert got, by layer.
    """

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

    def __init__(self, recipe: Recipe, first_step: int = 0):
        self.recipe, self.first_step = recipe, first_step
        self.outcomes: list[Outcome] = []
        self.started = self.last_status = time.perf_counter()
        self.paused_seconds = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count as training time."""
        start = time.perf_counter()
        yield
        self.paused_seconds += time.perf_counter() - start

    def status(self, step: int, load: dict[str, Tensor], score: float | None) -> Status:
        now = time.perf_counter()
        elapsed = now - self.started
        score_of_batches = torch.stack([outcome.score for outcome in self.outcomes]).mean().item()
        status = Status(
            step=step,
            steps=self.recipe.steps,
            loss=torch.stack([outcome.loss for outcome in self.outcomes]).mean().item(),
            accuracy=score_of_batches if math.isfinite(score_of_batches) else None,
            score=score,
            images_per_second=len(self.outcomes)
            * self.recipe.batch_size
            / (now - self.last_status - self.paused_seconds),
            seconds_left=elapsed / (step - self.first_step) * (self.recipe.steps - step),
            load={name: (counts / counts.sum()).tolist() for name, counts in load.items()},
        )
        self.last_status, self.paused_seconds, self.outcomes = now, 0.0, []
        return status
