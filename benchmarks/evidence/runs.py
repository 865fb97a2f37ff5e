"""The runs of the study, in their order, and what one of them is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from vismoe.training import Recipe

from .enough import objections
from .families import (
    AS_MANY_PARAMETERS,
    CNN,
    DENSE_1,
    E_8,
    E_128,
    FINE,
    GROWN,
    HASH_32,
    RANDOM_32,
    SHARED,
    SIGMOID_32,
    SPARSE_32,
    Family,
)
from .rates import outwards
from .tasks import DECISIVE, TASKS

BATCH = 128
WIDTHS, SEEDS = (64, 128), (0, 1, 2)
CLASSIFIER_RATE = 4e-3
"""Of the last map, which is the same in all networks: it wants a higher rate than any trunk."""
RATES = (5e-4, 1e-3, 2e-3)
PILOT = 0.25
"""The share of the training views that a pilot is trained on."""


@dataclass(frozen=True)
class Run:
    """One training. `stage`: "length" and "pilot" are evaluated on views of the training family, which choices are made
    by; "decisive" and "single" on what figures are of. `rate`: of all but the classifier."""

    stage: str
    family: Family
    width: int
    rate: float
    seed: int = 0
    task: str = DECISIVE

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from the others, as in the table's columns KEY."""
        return (self.stage, self.task, self.family.name, str(self.width), f"{self.rate:g}", str(self.seed))

    @property
    def name(self) -> str:
        """The same as one word: its folder."""
        return name_of(self.key)

    @property
    def chooses(self) -> bool:
        """Whether something is chosen by it, so that it must not see the test."""
        return self.stage in ("length", "pilot")

    @property
    def steps(self) -> int:
        """So that each training view is seen once, in a pilot a share of them."""
        kind = TASKS[self.task]
        return round((PILOT if self.stage == "pilot" else 1) * kind.pictures * kind.times / BATCH)

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            name="evidence",
            model=self.family.name,
            data=self.task,
            steps=self.steps,
            batch_size=BATCH,
            learning_rate=self.rate,
            learning_rates=((r"^(head|classifier)\.", CLASSIFIER_RATE),),
            schedule="constant",
            warmup_steps=100,
            average_decay=0.99,
            weight_decay=0.05,
            label_smoothing=0.0,
            **dict.fromkeys(("degrees", "translate", "scale", "shear"), 0.0),  # the views are made
            seed=self.seed,
            evaluate_every=max(1, self.steps // 4),
            checkpoint_every=500,
            keep_checkpoints=1,
            device="cpu",
        )

    def network(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return self.family.model(self.width, TASKS[self.task].classes)


KEY = ("stage", "task", "family", "width", "rate", "seed")


Rows = Sequence[Mapping[str, str]]
"""Of the table."""


Stage = Literal["pilot", "ways", "pilot-rest", "length", "decisive", "pilot-single", "single"]
"""In their order."""


def queue(rows: Rows, last: Stage = "single") -> list[Run]:
    """The runs of all stages up to one, as far as they are known: what is run depends on the stages before it."""
    found: list[Run] = []
    for stage, runs_of in STAGES.items():
        if {run.key for run in found} - {key_of(row) for row in rows} or (stage == "decisive" and too_short(rows)):
            break
        found += [run for run in runs_of(rows) if run not in found]
        if stage == last:
            break
    return found


def key_of(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)


def name_of(key: Sequence[str]) -> str:
    return "-".join(key).replace(" ", "")


def pilots(rows: Rows) -> list[Run]:
    """Learning rates of the trunk, dense and sparse, of the smaller width."""
    return [run for family in (DENSE_1, SPARSE_32, HASH_32) for run in _rates(rows, family, WIDTHS[0])]


def ways_of_growing(rows: Rows) -> list[Run]:
    """At the smaller width, each at the rate that is best for the dense trunk and at half of it."""
    best = best_rate(rows, DENSE_1, WIDTHS[0])
    return [_pilot(family, WIDTHS[0], rate) for family in GROWN for rate in (best, best / 2)]


def pilots_of_the_rest(rows: Rows) -> list[Run]:
    """Learning rates of what grows best, and of all networks of the larger width."""
    grown = ladder(rows)[1:]
    networks = [(family, WIDTHS[0]) for family in grown]
    networks += [(family, WIDTHS[1]) for family in (DENSE_1, SPARSE_32, HASH_32, *grown)]
    return [run for family, width in networks for run in _rates(rows, family, width)]


def length(rows: Rows) -> list[Run]:
    """Whole runs of the dense ladders, which must have had the time to fill their capacity: else a larger network is no
    better than a smaller one."""
    return [Run("length", family, width, best_rate(rows, family, width)) for width in WIDTHS for family in ladder(rows)]


def too_short(rows: Rows) -> list[str]:
    """What keeps the whole runs, once they all have rows, from deciding anything."""
    found, runs = {key_of(row): row for row in rows}, queue(rows, "length")
    if not all(run.key in found for run in runs):
        return []
    ladders = [[found[run.key] for run in runs if (run.stage, run.width) == ("length", width)] for width in WIDTHS]
    return [objection for ladder in ladders for objection in objections(ladder)]


def decisive(rows: Rows) -> list[Run]:
    """The ladder, the sparse trunk, and the one with fixed routing, each at its best rate."""
    return [
        Run("decisive", family, width, best_rate(rows, family, width), seed)
        for seed in SEEDS
        for width in WIDTHS
        for family in (*ladder(rows), SPARSE_32, HASH_32)
    ]


def single(rows: Rows) -> list[Run]:
    """One run each, of width 64: longer training, other experts, other tasks, other dense networks. A rate is that of
    the nearest network that has pilots. Where no difference is predicted, as many seeds as for the decisive runs."""
    width = WIDTHS[0]
    rungs, sparse = ladder(rows), best_rate(rows, SPARSE_32, width)
    rates = {family: best_rate(rows, family, width) for family in (*rungs, SPARSE_32)}
    found = [Run("single", family, width, rates[family], 0, "which-picture-4000-longer") for family in rates]
    found += [Run("single", family, width, sparse) for family in (E_8, E_128, SHARED, FINE, SIGMOID_32, RANDOM_32)]
    found += [
        Run("single", family, width, rates[family], seed, task)
        for task in ("openclipart-22", "fashion-mnist")
        for seed in SEEDS
        for family in (DENSE_1, SPARSE_32)
    ]
    found += [
        Run("single", family, width, rates[family], 0, task)
        for task in ("which-picture-1000", "which-picture-all")
        for family in rates
    ]
    found.append(Run("single", CNN, width, best_rate(rows, CNN, width)))
    largest = best_rate(rows, rungs[-1], WIDTHS[1])
    return [*found, Run("single", AS_MANY_PARAMETERS, width, largest)]


STAGES: dict[Stage, Callable[[Rows], list[Run]]] = {
    "pilot": pilots,
    "ways": ways_of_growing,
    "pilot-rest": pilots_of_the_rest,
    "length": length,
    "decisive": decisive,
    "pilot-single": lambda rows: _rates(rows, CNN, WIDTHS[0]),
    "single": single,
}


def ladder(rows: Rows) -> list[Family]:
    """The dense trunk, and of each larger size what its pilots found best."""
    grown = [[family for family in GROWN if family.times == times] for times in sorted({f.times for f in GROWN})]
    tried = ways_of_growing(rows)

    def least(way: Family) -> float:
        return min(_loss(rows, run) for run in tried if run.family == way)

    return [DENSE_1, *(min(ways, key=least) for ways in grown)]


def best_rate(rows: Rows, family: Family, width: int) -> float:
    """That of the pilot with the least loss."""
    return min(_rates(rows, family, width), key=lambda run: _loss(rows, run)).rate


def _rates(rows: Rows, family: Family, width: int) -> list[Run]:
    """Pilots of RATES, and of rates beyond them."""
    known = {key_of(row): float(row["val_loss_100"]) for row in rows}
    tried = outwards(RATES, lambda rate: known.get(_pilot(family, width, rate).key))
    return [_pilot(family, width, rate) for rate in tried]


def _pilot(family: Family, width: int, rate: float) -> Run:
    return Run("pilot", family, width, rate)


def _loss(rows: Rows, run: Run) -> float:
    """At the end of a run that is in the table."""
    return next(float(row["val_loss_100"]) for row in rows if key_of(row) == run.key)
