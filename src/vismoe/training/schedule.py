"""How the learning rate goes over a run."""

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "rsqrt", "constant"]


def rate_after(schedule: Schedule, done: int, steps: int, warmup_steps: int) -> float:
    """The share of the peak rate of the step that follows `done` of `steps`.

    Linear warm-up from 0 over `warmup_steps`; then timm's cosine, or a line, both over the whole run and to 0; or
    √(warmup ÷ done); or the peak itself.
    """
    if done < warmup_steps:
        return done / warmup_steps
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done / steps))
    if schedule == "linear":
        return 1 - done / steps
    if schedule == "rsqrt":
        return math.sqrt(max(warmup_steps, 1) / max(done, 1))
    return 1.0
