"""From losses to a verdict: the compute multiplier, its intervals, and the rules of RULES.md."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

import numpy as np
from over_seeds import CONFIDENCE, interval

LEAST, POINT = 1.3, 0.01
"""The multiplier from which sparse is said to pay, and the gain in top-1 that it has to bring too (RULES.md)."""
DRAWS = 2000


Bound = Literal["", "≥", "≤", "≈"]
"""A figure is itself; at least this, being made of what is better than the dense ladder; at most this, of what is
worse; made of both."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float
    bound: Bound = ""


def of_all(bounds: Iterable[Bound]) -> Bound:
    """What a figure is that is made of several."""
    found = set(bounds) - {""}
    return found.pop() if len(found) == 1 else "≈" if found else ""


OF_DIVISOR: dict[Bound, Bound] = {"": "", "≥": "≤", "≤": "≥", "≈": "≈"}
"""What a quotient is for being divided by a figure of each bound."""


def cost_at(cost: Sequence[float], loss: Sequence[float], wanted: float) -> float:
    """The cost at which a ladder of models has a loss, interpolated on log axes between its rungs; a rung that is no
    better than a cheaper one is left out. inf where none is as good; the cheapest rung's where that is better."""
    order = np.argsort(cost)
    x, y = np.log(np.asarray(cost, float)[order]), np.log(np.asarray(loss, float)[order])
    better = np.diff(np.minimum.accumulate(y), prepend=math.inf) < 0
    x, y = x[better], y[better]
    if math.log(wanted) < y[-1]:
        return math.inf
    return math.exp(np.interp(-math.log(wanted), -y, x))


def multiplier(cost: Sequence[float], loss: Sequence[float], own_cost: float, own_loss: float) -> tuple[float, Bound]:
    """How many times its own cost the dense ladder needs for a model's loss: of a model better than all rungs at least
    the best one's (dearer ones that are no better make the bound no higher), of one worse than the cheapest at most
    that one's."""
    needed = cost_at(cost, loss, own_loss)
    if math.isinf(needed):
        return min(zip(loss, cost, strict=True))[1] / own_cost, "≥"
    cheapest = min(zip(cost, loss, strict=True))[1]
    return needed / own_cost, "≤" if own_loss > cheapest else ""


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean of paired figures of several seeds, with Student's t."""
    return Interval(mean(values), *interval(values))


def multiplier_over_seeds(found: Sequence[tuple[float, Bound]]) -> Interval:
    """The geometric mean of several seeds' multipliers, with Student's t on their logarithms."""
    logs = over_seeds([math.log(value) for value, _ in found])
    values = [math.exp(value) for value in (logs.value, logs.low, logs.high)]
    return Interval(*values, of_all(bound for _, bound in found))


def multiplier_over_pictures(
    ladder: Sequence[Sequence[tuple[float, np.ndarray]]], own: Sequence[tuple[float, np.ndarray]]
) -> Interval:
    """The same multiplier, its interval by a bootstrap over the pictures that losses are of.

    **Arguments:** `ladder`: of each seed, cost and losses (pictures,) of each rung; `own`: of each seed, those of the
    model.
    """
    generator, pictures = np.random.default_rng(0), len(own[0][1])

    def geometric_mean(chosen: np.ndarray) -> tuple[float, Bound]:
        found = [
            multiplier([x for x, _ in rungs], [y[chosen].mean() for _, y in rungs], cost, losses[chosen].mean())
            for rungs, (cost, losses) in zip(ladder, own, strict=True)
        ]
        return math.exp(mean(math.log(value) for value, _ in found)), of_all(bound for _, bound in found)

    value, bound = geometric_mean(np.arange(pictures))
    drawn = [geometric_mean(generator.integers(pictures, size=pictures))[0] for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high), bound)


def top1_at(cost: Sequence[float], top1: Sequence[float], wanted: float) -> float:
    """The accuracy of a ladder at a cost, interpolated over its logarithm; the end rungs' outside."""
    order = np.argsort(cost)
    return float(np.interp(math.log(wanted), np.log(np.asarray(cost)[order]), np.asarray(top1)[order]))


def verdict(
    multipliers: Mapping[int, Sequence[Interval]],
    gain: Mapping[int, Interval],
    over_hash: Mapping[int, Interval],
    ladders: Mapping[int, Sequence[float]],
) -> str:
    """What RULES.md says of the figures at each width: all intervals of the multiplier, the gain in top-1 over the
    dense ladder at equal processor time, the loss by which the learned router is better than the fixed one, and the
    mean losses of the ladder's rungs, from the smallest."""
    if any(interval.low <= 0 for interval in over_hash.values()):
        return "memory, not routing"
    if any(min(larger) >= smallest for smallest, *larger in ladders.values()):
        return "undecided"
    low = min(interval.low for found in multipliers.values() for interval in found)
    high = max(interval.high for found in multipliers.values() for interval in found)
    bound = any(interval.bound in ("≥", "≈") for found in multipliers.values() for interval in found)
    if low >= LEAST and all(interval.value >= POINT for interval in gain.values()):
        return "pays"
    return "does not pay" if high < LEAST and not bound else "undecided"
