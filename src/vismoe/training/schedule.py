"""Learning rate schedules."""

import math

from .recipe import Recipe


def learning_rate(recipe: Recipe, done: int) -> float:
    """The learning rate of the next step after `done` steps.

    The warm-up is linear from 0 to the peak. After it the rate is end + (peak − end) × factor. With t of T steps done,
    w warm-up steps and c cooldown steps, the factor is:

    - cosine: ½ (1 + cos(πt / T)), and linear: 1 − t / T. As in timm, t counts from step 0, so the rate is below the
      peak when the warm-up ends.
    - warmup-cosine: ½ (1 + cos(πu)), and warmup-polynomial: (1 − u)^power, with u = (t − w) / (T − w). As in optax, the
      decay starts at the peak.
    - rsqrt: 1 / √(1 + (t − w) / timescale) (Zhai et al. 2022, section 3.5), and constant: 1. Both decay linearly to 0
      in the last c steps.

    **Arguments:**

    - `recipe`: the recipe.
    - `done`: number of steps done.
    """
    peak, end, steps, warmup = recipe.learning_rate, recipe.end_learning_rate, recipe.steps, recipe.warmup_steps
    if done < warmup:
        return peak * (done / warmup)
    return end + (peak - end) * _factor(recipe, done, steps, warmup)


def _factor(recipe: Recipe, done: int, steps: int, warmup: int) -> float:
    progress = (done - warmup) / max(steps - warmup, 1)
    match recipe.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done / steps))
        case "linear":
            return 1 - done / steps
        case "warmup-cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "warmup-polynomial":
            return float((1 - progress) ** recipe.power)
    cooling = max(0, done - (steps - recipe.cooldown_steps))
    remaining = 1 - cooling / recipe.cooldown_steps if cooling else 1.0
    return remaining * (_rsqrt(recipe, done - cooling, warmup) if recipe.schedule == "rsqrt" else 1.0)


def _rsqrt(recipe: Recipe, done: int, warmup: int) -> float:
    if recipe.timescale:
        return math.sqrt(recipe.timescale / (recipe.timescale + done - warmup))
    return math.sqrt(max(warmup, 1) / max(done, 1))
