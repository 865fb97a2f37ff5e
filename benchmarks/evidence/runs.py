"""The runs of the study, in their order, and what one of them is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from vismoe.training import Recipe

from .enough import objection
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
from .rates import lowest, outwards
from .tasks import DECISIVE, TASKS

BATCH = 128
WIDTHS, SEEDS = (64, 128), (0, 1, 2)
CATEGORIES = ("openclipart-22", "fashion-mnist")
"""Tasks that no network is predicted to be too small for."""
CLASSIFIER_RATE = 4e-3
"""Of the last map, which is the same in all networks: it wants a higher rate than any trunk."""
RATES = (5e-4, 1e-3, 2e-3)
"""The bases that pilots try first; a base is the rate of a network 64 wide."""
MATRICES = r"^(?!patch_embed\.)(?!pos_embed)(?!.*norm)(?!.*bias$)"
"""What learns the slower the wider a network is, in proportion (Yang et al. 2022): all but what is read from pixels,
positions, norms and biases."""
SHARES = {"pilot": 1 / 4, "longer": 1.0}
WHOLE = 2 / 3
"""The share of the training views that a run is trained on, each of them once, by its stage and otherwise."""


@dataclass(frozen=True)
class Run:
    """One training. `stage`: "pilot" and "length" are evaluated on views of the training family, which choices are made
    by; all others on what figures are of. `rate`: of all but the classifier, its matrices' × 64 ÷ their width."""

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
    def plain(self) -> "Run":
        """The same training under a plainer name: a dense network that grew in width is a wider trunk."""
        wider = self.family.grow == "width"
        return replace(self, family=DENSE_1, width=self.family.dim(self.width)) if wider else self

    @property
    def chooses(self) -> bool:
        """Whether something is chosen by it, so that it must not see the test."""
        return self.stage in ("pilot", "length")

    @property
    def steps(self) -> int:
        kind = TASKS[self.task]
        return round(SHARES.get(self.stage, WHOLE) * kind.pictures * kind.times / BATCH)

    @property
    def recipe(self) -> Recipe:
        pilot, matrices = self.stage == "pilot", self.rate * WIDTHS[0] / self.family.dim(self.width)
        return Recipe(
            name="evidence",
            model=self.family.name,
            data=self.task,
            steps=self.steps,
            batch_size=BATCH,
            learning_rate=self.rate,
            learning_rates=((r"^(head|classifier)\.", CLASSIFIER_RATE), (MATRICES, matrices)),
            schedule="constant",
            warmup_steps=100,
            average_decay=0.99 if pilot else 0.9999,  # at a pilot's end the warm-up's would reach back as far
            average_warmup=not pilot,
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


Stage = Literal["pilot", "ways", "pilot-rest", "length", "decisive", "single", "longer", "pilot-cnn", "cnn"]
"""In their order."""


def queue(rows: Rows, last: Stage = "cnn") -> list[Run]:
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
    best = min(_rates(rows, DENSE_1, WIDTHS[0]), key=lambda run: _loss(rows, run)).rate
    return [_pilot(family, WIDTHS[0], rate) for family in GROWN for rate in (best, best / 2)]


def pilots_of_the_rest(rows: Rows) -> list[Run]:
    """Learning rates of what grows best, and of all networks of the larger width."""
    grown = ladder(rows)[1:]
    networks = [(family, WIDTHS[0]) for family in grown]
    networks += [(family, WIDTHS[1]) for family in (DENSE_1, SPARSE_32, HASH_32, *grown)]
    return [run for family, width in networks for run in _rates(rows, family, width)]


def length(rows: Rows) -> list[Run]:
    """Whole runs of the dense trunks, which show whether runs are long enough."""
    return [Run("length", DENSE_1, width, best_rate(rows, DENSE_1, width)) for width in WIDTHS]


def too_short(rows: Rows) -> list[str]:
    """What keeps whole runs, as far as they have rows, from deciding anything."""
    return [found for row in rows if row["stage"] == "length" and (found := objection(row))]


def decisive(rows: Rows) -> list[Run]:
    """The ladder, the sparse trunk, and the one with fixed routing, each at its best rate."""
    networks = [(family, width) for width in WIDTHS for family in (*ladder(rows), SPARSE_32, HASH_32)]
    return [
        Run("decisive", family, width, best_rate(rows, family, width), seed)
        for seed in SEEDS
        for family, width in networks
    ]


def single(rows: Rows) -> list[Run]:
    """One run each, of width 64: other experts, other tasks, other dense networks. A rate is that of the nearest
    network that has pilots. As many seeds as for the decisive runs where no difference is predicted, and of the experts
    that did best: their one run was seen before the others were begun."""
    width = WIDTHS[0]
    rungs, sparse = ladder(rows), best_rate(rows, SPARSE_32, width)
    best = {family: best_rate(rows, family, width) for family in (*rungs, SPARSE_32)}
    found = [Run("single", family, width, sparse) for family in (E_8, E_128, SHARED, FINE, SIGMOID_32, RANDOM_32)]
    found += [
        Run("single", family, width, best[family], seed, task)
        for task in CATEGORIES
        for seed in SEEDS
        for family in (DENSE_1, SPARSE_32)
    ]
    found += [
        Run("single", family, width, best[family], 0, task)
        for task in ("which-picture-1000", "which-picture-all")
        for family in best
    ]
    largest = best_rate(rows, rungs[-1], WIDTHS[1])
    found.append(Run("single", AS_MANY_PARAMETERS, width, largest))
    return found + [Run("single", SHARED, width, sparse, seed) for seed in SEEDS[1:]]


def longer(rows: Rows) -> list[Run]:
    """Whether half as many steps again change the answer: the ladder and the sparse trunk of the smaller width."""
    width = WIDTHS[0]
    return [Run("longer", family, width, best_rate(rows, family, width)) for family in (*ladder(rows), SPARSE_32)]


def convolutional(rows: Rows) -> list[Run]:
    """Last, because it takes the longest for its multiplications."""
    return [Run("single", CNN, WIDTHS[0], best_rate(rows, CNN, WIDTHS[0]))]


STAGES: dict[Stage, Callable[[Rows], list[Run]]] = {
    "pilot": pilots,
    "ways": ways_of_growing,
    "pilot-rest": pilots_of_the_rest,
    "length": length,
    "decisive": decisive,
    "single": single,
    "longer": longer,
    "pilot-cnn": lambda rows: _rates(rows, CNN, WIDTHS[0]),
    "cnn": convolutional,
}


def ladder(rows: Rows) -> list[Family]:
    """The dense trunk, and of each larger size what its pilots found best."""
    grown = [[family for family in GROWN if family.times == times] for times in sorted({f.times for f in GROWN})]
    tried = ways_of_growing(rows)

    def least(way: Family) -> float:
        return min(_loss(rows, run) for run in tried if run.family == way)

    return [DENSE_1, *(min(ways, key=least) for ways in grown)]


def best_rate(rows: Rows, family: Family, width: int) -> float:
    """What its pilots say."""
    return lowest({run.rate: _loss(rows, run) for run in _rates(rows, family, width)})


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
