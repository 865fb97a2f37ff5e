"""What the decisive rows say: multipliers and their intervals, gains, and the verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from .families import HASH_32, SPARSE_32
from .measures import (
    Interval,
    multiplier,
    multiplier_over_pictures,
    multiplier_over_seeds,
    over_seeds,
    top1_at,
    verdict,
)
from .runs import SEEDS, WIDTHS, key_of, name_of

Row = Mapping[str, str]
SHARES = (25, 50, 100)


@dataclass(frozen=True)
class Decisive:
    """The decisive rows of one width: `ladder[seed]`: dense, from the smallest; `sparse[seed]`, `hashed[seed]`."""

    width: int
    ladder: list[list[Row]]
    sparse: list[Row]
    hashed: list[Row]


def decisive_of(rows: Sequence[Row], width: int) -> Decisive:
    """**Raises:** KeyError where one is missing."""
    found: dict[tuple[str, int], Row] = {
        (row["family"], int(row["seed"])): row
        for row in rows
        if (row["stage"], row["width"]) == ("decisive", str(width))
    }
    dense = {name for name, _ in found if name.startswith("dense") and "×" in name}
    ladder = [sorted((found[name, seed] for name in dense), key=lambda row: int(row["trunk"])) for seed in SEEDS]
    sparse, hashed = ([found[family.name, seed] for seed in SEEDS] for family in (SPARSE_32, HASH_32))
    return Decisive(width, ladder, sparse, hashed)


Cost = Callable[[Row], float]


def trunk(row: Row) -> float:
    """Multiplications per image, the classifier apart."""
    return float(row["trunk"])


def measured(speed: Sequence[Row], column: str) -> Cost:
    """What `evidence.speed` measured of a row's network."""
    known = {(row["family"], row["width"]): float(row[column]) for row in speed}
    return lambda row: known[row["family"], row["width"]]


def multipliers(found: Decisive, cost: Cost = trunk, share: int = 100) -> list[tuple[float, bool]]:
    """Of each seed: how many times the sparse trunk's cost the dense ladder needs for its test loss after a share of
    the steps, and whether that is only a bound."""
    loss = f"val_loss_{share}"
    return [
        multiplier([cost(row) for row in rungs], [float(row[loss]) for row in rungs], cost(own), float(own[loss]))
        for rungs, own in zip(found.ladder, found.sparse, strict=True)
    ]


def over_pictures(found: Decisive, losses: Callable[[Row], np.ndarray]) -> Interval:
    """The multiplier in multiplications, with a bootstrap over pictures."""
    ladder = [[(trunk(row), losses(row)) for row in rungs] for rungs in found.ladder]
    return multiplier_over_pictures(ladder, [(trunk(row), losses(row)) for row in found.sparse])


def rung_losses(found: Decisive) -> list[float]:
    """The ladder's test losses, the mean over seeds of each rung, from the smallest."""
    return [mean(float(row["val_loss_100"]) for row in rung) for rung in zip(*found.ladder, strict=True)]


def learns_faster(found: Decisive) -> Interval:
    """The multiplier after a quarter of the steps ÷ that at the end."""
    early, late = (multipliers(found, share=share) for share in (SHARES[0], SHARES[-1]))
    return multiplier_over_seeds([(first / last, a or b) for (first, a), (last, b) in zip(early, late, strict=True)])


def gain(found: Decisive, cost: Cost) -> Interval:
    """The sparse trunk's top-1 minus the dense ladder's at the same cost."""
    return over_seeds(
        [
            float(own["top1_100"])
            - top1_at([cost(row) for row in rungs], [float(row["top1_100"]) for row in rungs], cost(own))
            for rungs, own in zip(found.ladder, found.sparse, strict=True)
        ]
    )


def over_fixed(found: Decisive) -> Interval:
    """The test loss by which the learned router is better than the fixed one."""
    pairs = zip(found.hashed, found.sparse, strict=True)
    return over_seeds([float(fixed["val_loss_100"]) - float(own["val_loss_100"]) for fixed, own in pairs])


@dataclass(frozen=True)
class Findings:
    """All figures of the decisive runs, by width."""

    seeds: dict[int, dict[int, Interval]]
    pictures: dict[int, Interval]
    processor: dict[int, Interval]
    latency: dict[int, Interval]
    faster: dict[int, Interval]
    gain: dict[int, Interval]
    over_fixed: dict[int, Interval]
    verdict: str


def findings(rows: Sequence[Row], speed: Sequence[Row], losses: Callable[[Row], np.ndarray]) -> Findings:
    """By the rules of RULES.md.

    **Raises:** KeyError where a decisive run or a measurement of speed is missing.
    """
    found = {width: decisive_of(rows, width) for width in WIDTHS}
    processor, latency = measured(speed, "step_cpu_ms"), measured(speed, "latency_ms")

    def each(figure: Callable[[Decisive], Interval]) -> dict[int, Interval]:
        return {width: figure(decisive) for width, decisive in found.items()}

    seeds = {w: {s: multiplier_over_seeds(multipliers(d, share=s)) for s in SHARES} for w, d in found.items()}
    pictures = each(lambda decisive: over_pictures(decisive, losses))
    gains, fixed = each(lambda decisive: gain(decisive, processor)), each(over_fixed)
    faster = each(learns_faster)
    ladders = {width: rung_losses(decisive) for width, decisive in found.items()}
    said = verdict({width: [seeds[width][100], pictures[width]] for width in WIDTHS}, gains, fixed, ladders)
    if any(interval.low > 1 for interval in faster.values()):
        said += "; sparse learns faster too, and the multiplier falls with training"
    return Findings(
        seeds,
        pictures,
        each(lambda decisive: multiplier_over_seeds(multipliers(decisive, processor))),
        each(lambda decisive: multiplier_over_seeds(multipliers(decisive, latency))),
        faster,
        gains,
        fixed,
        said,
    )


def losses_in(folder: Path) -> Callable[[Row], np.ndarray]:
    """Reads a row's losses, picture by picture."""
    return lambda row: np.load(folder / f"{name_of(key_of(row))}.npy").astype(np.float64)
