"""A set in three splits: train, validation and test."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from vismoe.data import Data, Duplicates, find_duplicates, fingerprint_all, hold_out, leakage, open_data, summarise

TEST, VALIDATION = 0.2, 0.2
UNEVEN = 3.0
"""Largest class ÷ smallest above which classes count as uneven."""


@dataclass(frozen=True)
class Splits:
    """The splits of a set.

    - `fitting`: its `train` is the training split, its `val` the validation split, for early stopping and temperature.
      With too few images for a validation split `val` is the training split, and `validated` is False.
    - `test`: its `val` is the test split, which is never used for selection; its `train` is all the rest.
    - `summary`: see `vismoe.data.summarise`.
    - `dropped`: number of images that are left out because a copy is in the test split, or in a validation split of the
      set's own.
    """

    fitting: Data
    test: Data
    validated: bool
    summary: dict[str, Any]
    dropped: int

    @property
    def score(self) -> str:
        """The name of the primary metric."""
        return "mean_average_precision" if self.fitting.multi_label else "top1"

    @property
    def uneven(self) -> bool:
        """Whether some class has several times as many images as another."""
        return bool(self.summary["imbalance"] > UNEVEN)

    @property
    def sizes(self) -> str:
        """The sizes of the splits, in words."""
        train, validation, test = len(self.fitting.parts[0]), len(self.fitting.val), len(self.test.val)
        chosen = (
            f"{validation:,} to choose by"
            if self.validated
            else "too few for a part to choose by (figures while it trains are of the training part)"
        )
        dropped = f" ({self.dropped:,} are left out, whose copies are in another split)" if self.dropped else ""
        return f"{train:,} images to train on{dropped}, {chosen}, {test:,} to test on"

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The file and the split of each image."""
        rows = [(file, "train") for file in self.fitting.parts[0].files]
        rows += [(file, "validation") for file in self.fitting.val.files] if self.validated else []
        return rows + [(file, "test") for file in self.test.val.files]


def open_splits(name: str, seed: int, max_unreadable: float, workers: int = 0) -> Splits:
    """Opens a folder (or zip, or named set) and splits it, so that no image has a copy, exact or near, in
    another split. A test split of its own is kept (test/; val/ where there is none), and so is a validation split
    beside it; images with a copy there are not trained on.

    **Raises:** ValueError, FileNotFoundError for a set that cannot be trained on.
    """
    opened = open_data(name)
    whole = opened.for_testing  # a test split of its own, and the rest
    if len(opened.classes) < 2:
        raise ValueError(f"{name} has one class, {opened.classes[0]}: a classifier needs at least two")
    data, prints = fingerprint_all(whole, max_unreadable, workers)
    duplicates = find_duplicates(prints)
    if data.train is None:
        data, duplicates = hold_out(data, duplicates, seed, TEST)
    summary = summarise(data, duplicates)
    assert data.train is not None
    leaking = {first for _, first in leakage(data, duplicates)}
    groups = {duplicates.groups[index] for index in leaking}
    kept = [index for index in range(len(data.train)) if duplicates.groups[index] not in groups]
    dropped = len(data.train) - len(kept)
    training, duplicates = data.train.subset(kept), duplicates.subset(kept)
    data = replace(data, train=training)
    data.check_classes(training, "but for copies of test images there is nothing to train on of")
    own = set(opened.val.files) if opened.test is not None else set()
    if own:
        fitting, validated = _with_own_validation(data, duplicates, own), True
        dropped += len(training) - sum(map(len, fitting.parts))
    else:
        fitting, validated = _with_validation(data, duplicates, seed)
    return Splits(fitting, data, validated, summary, dropped)


def _with_validation(data: Data, duplicates: Duplicates, seed: int) -> tuple[Data, bool]:
    assert data.train is not None
    whole = replace(data, train=None, val=data.train)
    try:
        fitting, _ = hold_out(whole, duplicates, seed + 1, VALIDATION)
    except ValueError:
        fitting = whole
    if fitting.train is None or len(fitting.val) < 2 * len(data.classes):
        return replace(whole, train=data.train), False
    return fitting, True


def _with_own_validation(data: Data, duplicates: Duplicates, own: Collection[str]) -> Data:
    """The set with its own validation split, the files `own`; what has a copy there is not trained on."""
    assert data.train is not None
    validation = [index for index, file in enumerate(data.train.files) if file in own]
    groups = {duplicates.groups[index] for index in validation}
    training = [index for index in range(len(data.train)) if duplicates.groups[index] not in groups]
    if not training or not validation:
        raise ValueError(f"{data.name}: but for copies of other splits' images nothing is left to train or validate on")
    fitting = replace(data, train=data.train.subset(training), val=data.train.subset(validation))
    fitting.check_classes(fitting.parts[0], "but for copies of validation images there is nothing to train on of")
    return fitting
