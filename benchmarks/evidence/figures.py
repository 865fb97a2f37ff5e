"""What the decisive rows say: multipliers and their intervals, gains, and the verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np

from .families import DENSE_1, HASH_32, SPARSE_32, Family
from .measures import (
    OF_DIVISOR,
    Bound,
    Interval,
    multiplier,
    multiplier_over_pictures,
    multiplier_over_seeds,
    of_all,
    over_seeds,
    top1_at,
    verdict,
)
from .runs import SEEDS, WIDTHS, key_of, name_of
from .tasks import KINDS, VIEWS, kinds

Row = Mapping[str, str]
SHARES = (25, 50, 100)


@dataclass(frozen=True)
class Views:
    """What figures are of: `prefix` of the columns, `part` of the files with what came out for each view."""

    name: str
    prefix: str
    part: str

    def loss(self, row: Row, share: int = 100) -> float:
        """After a share of the steps."""
        return float(row[f"{self.prefix}val_loss_{share}"])

    def top1(self, row: Row, share: int = 100) -> float:
        return float(row[f"{self.prefix}top1_{share}"])


UNFAMILIAR, FAMILIAR = Views("unfamiliar", "", "test"), Views("familiar", "familiar_", "familiar")
"""Of the held-out family, which decides; of the family trained on, which is looked at besides."""


@dataclass(frozen=True)
class Decisive:
    """The decisive rows of one width: `ladder[seed]`: dense, from the smallest; `sparse[seed]`, `hashed[seed]`."""

    width: int
    ladder: list[list[Row]]
    sparse: list[Row]
    hashed: list[Row]

    @property
    def rungs(self) -> list[list[Row]]:
        """The ladder the other way about: of each rung, every seed's."""
        return [list(rung) for rung in zip(*self.ladder, strict=True)]


def rungs(rows: Sequence[Row]) -> list[Row]:
    """The dense ladder among them, from the smallest."""
    dense = [row for row in rows if row["family"].startswith("dense") and "×" in row["family"]]
    return sorted(dense, key=lambda row: int(row["trunk"]))


def decisive_rows(rows: Sequence[Row], width: int) -> list[Row]:
    return [row for row in rows if (row["stage"], row["width"]) == ("decisive", str(width))]


def decisive_of(rows: Sequence[Row], width: int) -> Decisive:
    """**Raises:** KeyError where one is missing."""
    those = decisive_rows(rows, width)
    found: dict[tuple[str, int], Row] = {(row["family"], int(row["seed"])): row for row in those}
    dense = {row["family"] for row in rungs(those)}
    ladder = [rungs([found[name, seed] for name in dense]) for seed in SEEDS]
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


def multipliers(found: Decisive, views: Views, cost: Cost = trunk, share: int = 100) -> list[tuple[float, Bound]]:
    """Of each seed: how many times the sparse trunk's cost the dense ladder needs for its loss after a share of the
    steps."""
    return [
        multiplier_of(ladder, own, views, cost, share) for ladder, own in zip(found.ladder, found.sparse, strict=True)
    ]


def multiplier_of(
    ladder: Sequence[Row], own: Row, views: Views, cost: Cost = trunk, share: int = 100
) -> tuple[float, Bound]:
    """How many times a row's cost a dense ladder needs for its loss after a share of the steps."""
    losses = [views.loss(row, share) for row in ladder]
    return multiplier([cost(row) for row in ladder], losses, cost(own), views.loss(own, share))


def difference(
    rows: Sequence[Row], figure: Callable[[Row], float], family: Family = SPARSE_32, than: Family = DENSE_1
) -> Interval:
    """A figure of one network minus that of another, paired over seeds.

    **Raises:** KeyError where one of them misses a seed.
    """
    own, other = ({row["seed"]: figure(row) for row in rows if row["family"] == each.name} for each in (family, than))
    return over_seeds([own[seed] - other[seed] for seed in own.keys() | other.keys()])


def over_pictures(found: Decisive, losses: Callable[[Row], np.ndarray]) -> Interval:
    """The multiplier in multiplications, with a bootstrap over pictures."""
    ladder = [[(trunk(row), losses(row)) for row in each] for each in found.ladder]
    return multiplier_over_pictures(ladder, [(trunk(row), losses(row)) for row in found.sparse])


def rung_losses(found: Decisive, views: Views) -> list[float]:
    """The ladder's losses, the mean over seeds of each rung, from the smallest."""
    return [mean(map(views.loss, rung)) for rung in found.rungs]


def learns_faster(found: Decisive, views: Views) -> Interval:
    """The multiplier after a quarter of the steps ÷ that at the end."""
    early, late = (multipliers(found, views, share=share) for share in (SHARES[0], SHARES[-1]))
    return multiplier_over_seeds(
        [(first / last, of_all((a, OF_DIVISOR[b]))) for (first, a), (last, b) in zip(early, late, strict=True)]
    )


def gain(found: Decisive, views: Views, cost: Cost) -> Interval:
    """The sparse trunk's top-1 minus the dense ladder's at the same cost."""
    return over_seeds(
        [
            views.top1(own) - top1_at([cost(row) for row in ladder], [views.top1(row) for row in ladder], cost(own))
            for ladder, own in zip(found.ladder, found.sparse, strict=True)
        ]
    )


def over_fixed(found: Decisive, views: Views) -> Interval:
    """The loss by which the learned router is better than the fixed one."""
    return difference([*found.hashed, *found.sparse], views.loss, HASH_32, SPARSE_32)


@dataclass(frozen=True)
class Findings:
    """All figures of the decisive runs on one kind of views, by width, and what RULES.md makes of them."""

    views: Views
    seeds: dict[int, dict[int, Interval]]
    pictures: dict[int, Interval]
    processor: dict[int, Interval]
    latency: dict[int, Interval]
    optimized: dict[int, Interval]
    faster: dict[int, Interval]
    gain: dict[int, Interval]
    over_fixed: dict[int, Interval]
    verdict: str


Losses = Callable[[Row, Views], np.ndarray]
"""Of each picture."""


def findings(rows: Sequence[Row], speed: Sequence[Row], losses: Losses, views: Views = UNFAMILIAR) -> Findings:
    """By the rules of RULES.md.

    **Raises:** KeyError where a decisive run or a measurement of speed is missing.
    """
    found = {width: decisive_of(rows, width) for width in WIDTHS}
    processor = measured(speed, "step_cpu_ms")
    latency, optimized = measured(speed, "latency_ms"), measured(speed, "optimized_ms")

    def each(figure: Callable[[Decisive], Interval]) -> dict[int, Interval]:
        return {width: figure(decisive) for width, decisive in found.items()}

    def times(cost: Cost = trunk, share: int = 100) -> dict[int, Interval]:
        return each(lambda decisive: multiplier_over_seeds(multipliers(decisive, views, cost, share)))

    by_share = {share: times(share=share) for share in SHARES}
    seeds = {width: {share: by_share[share][width] for share in SHARES} for width in WIDTHS}
    pictures = each(lambda decisive: over_pictures(decisive, lambda row: losses(row, views)))
    gains = each(partial(gain, views=views, cost=processor))
    fixed, faster = (each(partial(figure, views=views)) for figure in (over_fixed, learns_faster))
    ladders = {width: rung_losses(decisive, views) for width, decisive in found.items()}
    said = verdict({width: [seeds[width][100], pictures[width]] for width in WIDTHS}, gains, fixed, ladders)
    if any(interval.low > 1 and interval.bound in ("", "≥") for interval in faster.values()):
        said += "; sparse learns faster too, and the multiplier falls with training"
    spent = times(processor), times(latency), times(optimized)
    return Findings(views, seeds, pictures, *spent, faster, gains, fixed, said)


def arrays_in(folder: Path) -> Callable[[Row], Mapping[str, np.ndarray]]:
    """Reads what came out for each view of a row's network."""
    return lambda row: np.load(folder / f"{name_of(key_of(row))}.npz")


def losses_in(folder: Path) -> Losses:
    """Reads a row's losses, the mean of each picture's views."""
    arrays = arrays_in(folder)

    def of_pictures(row: Row, views: Views) -> np.ndarray:
        return arrays(row)[f"{views.part}_loss"].astype(np.float64).reshape(-1, VIEWS).mean(1)

    return of_pictures


def by_kind(rows: Sequence[Row], arrays: Callable[[Row], Mapping[str, np.ndarray]]) -> dict[str, tuple[float, float]]:
    """The loss and top-1 of a network, the means over its seeds, on each kind of unfamiliar views."""
    found = [arrays(row) for row in rows]
    loss, right = (np.mean([each[f"test_{name}"].astype(float) for each in found], 0) for name in ("loss", "right"))
    kind = np.array(kinds(len(loss) // VIEWS))
    return {name: (float(loss[kind == name].mean()), float(right[kind == name].mean())) for name in KINDS}


def differences_by_kind(found: Decisive, arrays: Callable[[Row], Mapping[str, np.ndarray]]) -> dict[str, Interval]:
    """The loss of the sparse trunk minus that of the dense one, paired over seeds, on each kind of unfamiliar views."""
    pairs = [
        (by_kind([own], arrays), by_kind([ladder[0]], arrays))
        for own, ladder in zip(found.sparse, found.ladder, strict=True)
    ]
    return {kind: over_seeds([own[kind][0] - dense[kind][0] for own, dense in pairs]) for kind in KINDS}
