"""Training progress: loss, score and speed."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..recipe import Recipe
from ..step import Outcome

ScoreSplit = Literal["validation", "training"]


@dataclass(frozen=True)
class Status:
    """Training progress.

    - `step`: number of steps done.
    - `steps`: number of steps in the run.
    - `loss`: mean training loss since the last status.
    - `accuracy`: mean training metric of the task since the last status; None if the task has none.
    - `score`: primary metric in the last evaluation; None before the first.
    - `images_per_second`: training speed since the last status, without the time of evaluations.
    - `seconds_left`: estimated seconds until the last step.
    - `load`: by layer, the fraction of the tokens' choices that each expert got.
    - `score_step`: the step of the last evaluation; None before the first.
    - `score_split`: the split that `score` is measured on: "validation"; "training" in a set without a validation
      split.
    - `exchanges`: of a distributed network, by process: "rows", the number of rows that its experts got in this step,
      and "share", the fraction of the step that it spent in the exchanges of its forward passes.
    """

    step: int
    steps: int
    loss: float
    accuracy: float | None
    score: float | None
    images_per_second: float
    seconds_left: float
    load: dict[str, list[float]]
    score_step: int | None = None
    score_split: ScoreSplit = "validation"
    exchanges: Sequence[dict[str, float]] = ()


class Meter:
    """Measures loss, accuracy and speed since the last status.

    **Arguments:**

    - `recipe`: the recipe of the run.
    - `first_step`: number of steps already done; default 0.
    - `score_split`: see `Status`; default "validation".
    """

    def __init__(self, recipe: Recipe, first_step: int = 0, score_split: ScoreSplit = "validation"):
        self.recipe, self.first_step, self.score_split = recipe, first_step, score_split
        self.outcomes: list[Outcome] = []
        self.started = self.last_status = time.perf_counter()
        self.paused_seconds = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time in this block does not count as training time."""
        start = time.perf_counter()
        yield
        self.paused_seconds += time.perf_counter() - start

    def status(self, step: int, load: dict[str, Tensor], score: float | None, score_step: int | None = None) -> Status:
        """The status after a step; starts a new measurement.

        **Arguments:**

        - `step`: number of steps done.
        - `load`: by layer, the number of choices that each expert got.
        - `score`: primary metric in the last evaluation; None before the first.
        - `score_step`: the step of the last evaluation; default None.
        """
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
            score_step=score_step,
            score_split=self.score_split,
            exchanges=self.outcomes[-1].exchanges,
        )
        self.last_status, self.paused_seconds, self.outcomes = now, 0.0, []
        return status
