"""A set in three splits: train, validation and test."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vismoe.data import (
    Data,
    Duplicates,
    ImageSet,
    SharedGroups,
    check_groups,
    find_duplicates,
    find_group_column,
    fingerprint_all,
    joined_groups,
    open_data,
    shared_groups,
    split_data,
    summarise,
)
from vismoe.training import Run

from .run_splits import split_of_files

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
    - `dropped`: number of images that are left out because a copy, or an image of their group, is in the test split, or
      in a validation split of the set's own.
    - `unnamed`: a column that looks like one of groups and is not split by; None: there is none.
    """

    fitting: Data
    test: Data
    validated: bool
    summary: dict[str, Any]
    dropped: int
    unnamed: SharedGroups | None = None

    @property
    def score(self) -> str:
        """The name of the primary metric."""
        return "mean_average_precision" if self.fitting.multi_label else "top1"

    @property
    def uneven(self) -> bool:
        """Whether some class has several times as many images as another."""
        return bool(self.summary["imbalance"] > UNEVEN)

    @property
    def image_side(self) -> int:
        """The shorter side of a typical image, in pixels."""
        return int(min(self.summary["width"]["median"], self.summary["height"]["median"]))

    @property
    def sizes(self) -> str:
        """The sizes of the splits, in words."""
        train, validation, test = len(self.fitting.train_and_val[0]), len(self.fitting.val), len(self.test.val)
        validated = (
            f"{validation:,} validation"
            if self.validated
            else "no validation (too few images; metrics during training are of the training split)"
        )
        column = self.fitting.group_column
        of_group = "" if column is None else f" or images of their {column}"
        dropped = (
            f" ({self.dropped:,} more are left out: their copies{of_group} are in another split)"
            if self.dropped
            else ""
        )
        groups = ""
        if column is not None:
            numbers = [len(set(images.columns[column])) for images in self._parts]
            groups = f"; each {column} is in one split: {' + '.join(f'{number:,}' for number in numbers)}"
        return f"split: {train:,} training{dropped}, {validated}, {test:,} test images{groups}"

    @property
    def _parts(self) -> list[ImageSet]:
        """Training, validation (where there is one) and test split."""
        return [*(self.fitting.train_and_val if self.validated else self.fitting.train_and_val[:1]), self.test.val]

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The file and the split of each image."""
        rows = [(file, "train") for file in self.fitting.train_and_val[0].files]
        rows += [(file, "validation") for file in self.fitting.val.files] if self.validated else []
        return rows + [(file, "test") for file in self.test.val.files]


def open_splits(
    name: str,
    seed: int,
    max_unreadable: float,
    workers: int = 0,
    group_column: str | None = None,
    parent: Run | None = None,
) -> Splits:
    """Opens a folder (or zip, or named set) and splits it, so that no image has a copy, exact or near, in
    another split. A test split of its own is kept (test/; val/ where there is none), and so is a validation split
    beside it; images with a copy there are not trained on.

    **Arguments:** `group_column`: images with one value of this column of metadata.csv stay in one split, as copies
    do; `parent`: a run on this set whose network is trained further. Its split is kept, so that the child is tested on
    no image that the parent was trained on; images that the parent did not know are trained on, or are where their
    copies are.

    **Raises:** ValueError, FileNotFoundError for a set that cannot be trained on.
    """
    opened = open_data(name, group_column=group_column)
    whole = opened.for_testing  # a test split of its own, and the rest
    if len(opened.classes) < 2:
        raise ValueError(f"{name} has one class, {opened.classes[0]}: a classifier needs at least two")
    check_groups(whole, fewest=2 if whole.train is not None else 3)
    sides = {} if parent is None else _sides_of_parent(parent)
    if parent is not None and parent.test_files is not None:
        seed = parent.recipe.split_seed  # of the validation split, where images have no files
    data, prints = fingerprint_all(whole, max_unreadable, workers)
    duplicates = find_duplicates(prints)
    if data.train is None:
        if sides:
            data, duplicates = _divide(data, duplicates, [sides.get(file) == "test" for file in data.val.files])
        else:
            data, duplicates = split_data(data, duplicates, seed, TEST)
    if parent is not None:
        _refuse_groups_of_parent(data, parent)
    summary = summarise(data, duplicates)
    assert data.train is not None
    groups = joined_groups(data, duplicates.groups)
    tested = set(groups[len(data.train) :])
    kept = [index for index in range(len(data.train)) if groups[index] not in tested]
    dropped = len(data.train) - len(kept)
    unnamed = find_group_column(data, fewest=3)
    training, duplicates = data.train.subset(kept), duplicates.subset(kept)
    data = replace(data, train=training)
    data.check_classes(training, f"but for copies of test images{_or_of_groups(data)} there is nothing to train on of")
    own = set(opened.val.files) if opened.test is not None else set()
    if own:
        fitting, validated = _with_own_validation(data, duplicates, own), True
        dropped += len(training) - sum(map(len, fitting.train_and_val))
    else:
        fitting, validated = _with_validation(data, duplicates, seed, sides)
    return Splits(fitting, data, validated, summary, dropped, unnamed)


def _or_of_groups(data: Data) -> str:
    return "" if data.group_column is None else f", and images of their {data.group_column},"


def _sides_of_parent(parent: Run) -> dict[str, str]:
    """The split that each file had in a parent's run, "test" where it was not trained on; empty for a named set.

    **Raises:** ValueError where that is not known.
    """
    if parent.test_files is None and parent.recipe.data == "digits" and parent.recipe.split_seed:
        raise ValueError(
            f"{parent.path} was trained with split_seed={parent.recipe.split_seed}, on digits that finetune tests on: "
            "train it with --split-seed 0, or start from another network"
        )
    try:
        sides = split_of_files(parent)
    except ValueError as error:
        raise ValueError(f"{parent.path} was trained on this set, but not known is on which images: {error}") from error
    return {file: "test" if side == "held-out" else side for file, side in sides.items()}


def _divide(data: Data, duplicates: Duplicates, held_out: Sequence[bool]) -> tuple[Data, Duplicates]:
    """A set in one piece with `train` and `val` as `held_out` says, and the duplicates in their new order."""
    train = [index for index, out in enumerate(held_out) if not out]
    val = [index for index, out in enumerate(held_out) if out]
    if not train or not val:
        which = "tested" if train else "trained"
        raise ValueError(f"{data.name} has none of the images any more that the parent of --from was {which} on")
    return replace(data, train=data.val.subset(train), val=data.val.subset(val)), duplicates.subset(train + val)


def _refuse_groups_of_parent(data: Data, parent: Run) -> None:
    """Raises ValueError where the parent was tested on groups that it was trained on."""
    assert data.train is not None
    if data.group_column is not None and (found := shared_groups(data.train, data.val, data.group_column)):
        column = data.group_column
        raise ValueError(
            f"group_column={column!r}: {parent.path} was trained on images of the same {column} as {found.shared} of "
            f"its {found.evaluated} test images: train it anew with --group-column {column}, or start from a network "
            "that was not trained on this set"
        )


def _with_validation(data: Data, duplicates: Duplicates, seed: int, sides: Mapping[str, str]) -> tuple[Data, bool]:
    """The set without its test split, with a validation split: the parent's where it had one."""
    assert data.train is not None
    whole = replace(data, train=None, val=data.train)
    try:
        if "validation" in sides.values():
            groups = joined_groups(whole, duplicates.groups)
            chosen = {
                group for group, file in zip(groups, whole.val.files, strict=True) if sides.get(file) == "validation"
            }
            fitting, _ = _divide(whole, duplicates, [group in chosen for group in groups])
        else:
            fitting, _ = split_data(whole, duplicates, seed + 1, VALIDATION)
    except ValueError:
        fitting = whole
    if fitting.train is None or len(fitting.val) < 2 * len(data.classes):
        return replace(whole, train=data.train), False
    return fitting, True


def _with_own_validation(data: Data, duplicates: Duplicates, own: Collection[str]) -> Data:
    """The set with its own validation split, the files `own`; what has a copy there is not trained on."""
    assert data.train is not None
    validation = [index for index, file in enumerate(data.train.files) if file in own]
    groups = joined_groups(replace(data, train=None, val=data.train), duplicates.groups)
    validated = {groups[index] for index in validation}
    training = [index for index, group in enumerate(groups) if group not in validated]
    copies = f"copies of other splits' images{_or_of_groups(data)}"
    if not training or not validation:
        raise ValueError(f"{data.name}: but for {copies} nothing is left to train or validate on")
    fitting = replace(data, train=data.train.subset(training), val=data.train.subset(validation))
    fitting.check_classes(fitting.train_and_val[0], f"but for {copies} there is nothing to train on of")
    return fitting
