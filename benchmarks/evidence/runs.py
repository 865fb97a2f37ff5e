"""The runs of the study, in their order, and what one of them is."""

from dataclasses import dataclass

import torch
from torch import nn

from vismoe.training import Recipe

from .families import DENSE_1, GROWN, HASH_32, SPARSE_32, Family
from .tasks import AUGMENTATION

BATCH, VIEWS_OF_A_CLASS, CLASSES = 128, 48, 4000
WIDTHS, SEEDS = (64, 128), (0, 1, 2)
RATES = (1e-3, 2e-3, 4e-3)
PILOT = 0.25
"""The share of the steps that a pilot takes."""


@dataclass(frozen=True)
class Run:
    """One training. `stage`: "pilot", evaluated on views of the training family, which choices are made by, or
    "decisive", "single", evaluated on held-out views."""

    stage: str
    family: Family
    width: int
    rate: float
    seed: int = 0
    classes: int = CLASSES
    share: float = 1.0

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from the others, as in the table's columns KEY."""
        return (self.stage, self.family.name, str(self.width), f"{self.rate:g}", str(self.seed), str(self.classes))

    def recipe(self, data: str, classes: int) -> Recipe:
        steps = round(self.share * VIEWS_OF_A_CLASS * classes / BATCH)
        return Recipe(
            name="evidence",
            model=self.family.name,
            data=data,
            steps=steps,
            batch_size=BATCH,
            learning_rate=self.rate,
            schedule="constant",
            warmup_steps=100,
            average_decay=0.99,
            weight_decay=0.05,
            label_smoothing=0.0,
            **{"translate": 0.0, "scale": 0.0, "shear": 0.0} | AUGMENTATION,
            seed=self.seed,
            evaluate_every=max(1, steps // 4),
            checkpoint_every=250,
            keep_checkpoints=1,
            device="cpu",
        )

    def network(self, classes: int) -> nn.Module:
        torch.manual_seed(self.seed)
        return self.family.model(self.width, classes)


KEY = ("stage", "family", "width", "rate", "seed", "classes")


def pilots() -> list[Run]:
    """Learning rates of each family at each width, then which way of growing is best."""
    found = [
        Run("pilot", family, width, rate, share=PILOT)
        for width in WIDTHS
        for family in (DENSE_1, SPARSE_32, HASH_32)
        for rate in RATES
    ]
    return found + [Run("pilot", family, width, RATES[1], share=PILOT) for width in WIDTHS for family in GROWN]
