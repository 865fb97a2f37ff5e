"""A set in three splits: train, validation and test."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vismoe.data import (
    Data,
    Duplicates,
    ImageSet,
    NameGroups,
    SharedGroups,
    check_groups,
    count_groups,
    find_duplicates,
    find_group_column,
    find_name_groups,
    fingerprint_all,
    format_unnamed,
    joined_groups,
    open_data,
    shared_groups,
    split_data,
    summarise,
)
from vismoe.files import counted
from vismoe.training import Run

from .run_splits import split_of_files

TEST, VALIDATION = 0.2, 0.2
UNEVEN = 3.0
"""Largest class size ÷ smallest class size above which classes count as imbalanced."""


@dataclass(frozen=True)
class Splits:
    """The splits of a set.

    - `fitting`: its `train` is the training split, its `val` the validation split (early stopping, temperature). With
      too few images for a validation split, `val` is the training split.
    - `test`: its `val` is the test split, which is never used for selection; its `train` is everything else.
    - `validated`: whether there is a validation split.
    - `summary`: see `vismoe.data.summarise`.
    - `dropped`: number of images left out because a copy, or an image of their group, is in the test split or in the
      set's own validation split.
    - `unnamed`: a column that looks like groups but is not used for the split; None: there is none.
    - `by_name`: beginnings of file names that look like groups; None: there are none, or there is such a column.
    """

    fitting: Data
    test: Data
    validated: bool
    summary: dict[str, Any]
    dropped: int
    unnamed: SharedGroups | None = None
    by_name: NameGroups | None = None

    @property
    def score(self) -> str:
        """The name of the primary metric."""
        if self.fitting.has_boxes:
            return "map"
        return "mean_average_precision" if self.fitting.multi_label else "top1"

    @property
    def uneven(self) -> bool:
        """Whether classes are imbalanced: the largest has more than UNEVEN times as many images as the smallest."""
        return bool(self.summary["imbalance"] > UNEVEN)

    @property
    def image_side(self) -> int:
        """The shorter side of a typical image, in pixels."""
        return int(min(self.summary["width"]["median"], self.summary["height"]["median"]))

    @property
    def sizes(self) -> str:
        """The sizes of the splits, as a text."""
        train, validation, test = len(self.fitting.train_and_val[0]), len(self.fitting.val), len(self.test.val)
        validated = (
            f"{validation:,} validation"
            if self.validated
            else f"{validation:,} validation (not used for selection)"
            if self.fitting.has_validation
            else "no validation (too few images; metrics during training are on the training split)"
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
            numbers = [count_groups(images.columns[column]) for images in self._parts]
            groups = f"; each {column} is in one split: {' + '.join(f'{number:,}' for number in numbers)}"
            if unnamed := format_unnamed(self.test):
                groups += f"; {unnamed}"
        return f"split: {train:,} training{dropped}, {validated}, {counted(test, 'test image')}{groups}"

    @property
    def _parts(self) -> list[ImageSet]:
        """Training, validation (if there is one) and test split."""
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
    """Opens a folder (or zip, or named set) and splits it. No image has a copy, exact or near, in another split.

    If the set has a test split (test/, or val/ without test/), it is kept, and so is a validation split next to it;
    training images with a copy in these are left out.

    **Arguments:**

    - `name`: the set, see `vismoe.data.open_data`.
    - `seed`: seed of the random splits.
    - `max_unreadable`: largest fraction of unreadable files, 0 to 1.
    - `workers`: number of processes that load images; default 0: the current process.
    - `group_column`: column of metadata.csv; images with the same value stay in one split. Default None: none.
    - `parent`: a run on this set whose network is trained further; default None: none. Its splits are kept, so that no
      test image was a training image of the parent. Images that are new since then are training images, or in the split
      of their copies.

    **Raises:** ValueError, FileNotFoundError for a set that cannot be trained on.
    """
    opened = open_data(name, group_column=group_column)
    whole = opened.for_testing  # `val` is the test split if the set has one
    if len(opened.classes) < 2 and not opened.has_boxes:
        raise ValueError(f"{name} has one class, {opened.classes[0]}: a classifier needs at least two")
    check_groups(whole, fewest=2 if whole.train is not None else 3)
    sides = {} if parent is None else _sides_of_parent(parent)
    if parent is not None and parent.test_files is not None:
        seed = parent.recipe.split_seed  # for the validation split of sets without files
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
    by_name = find_name_groups(data) if unnamed is None else None
    training, duplicates = data.train.subset(kept), duplicates.subset(kept)
    data = replace(data, train=training)
    left_out = f"copies of test images{_or_of_groups(data)}"
    data.check_classes(training, f"without {left_out} no training images are left in the classes")
    validation_files = set(opened.val.files) if opened.test is not None else set()
    if validation_files:
        fitting, validated = _with_own_validation(data, duplicates, validation_files), True
        dropped += len(training) - sum(map(len, fitting.train_and_val))
    else:
        fitting, validated = _with_validation(data, duplicates, seed, sides)
    return Splits(fitting, data, validated, summary, dropped, unnamed, by_name)


def _or_of_groups(data: Data) -> str:
    return "" if data.group_column is None else f", and images of their {data.group_column},"


def _sides_of_parent(parent: Run) -> dict[str, str]:
    """The split of each file in a parent's run, "test" for files that it was not trained on; empty for a named set.

    **Raises:** ValueError if the splits are not known.
    """
    if parent.test_files is None and parent.recipe.data == "digits" and parent.recipe.split_seed:
        raise ValueError(
            f"{parent.path} was trained with split_seed={parent.recipe.split_seed}, so on some of finetune's test "
            "images: train it with --split-seed 0, or start from another network"
        )
    try:
        sides = split_of_files(parent)
    except ValueError as error:
        raise ValueError(
            f"{parent.path} was trained on this set, but its training images are not known: {error}"
        ) from error
    return {file: "test" if side == "held-out" else side for file, side in sides.items()}


def _divide(data: Data, duplicates: Duplicates, is_val: Sequence[bool]) -> tuple[Data, Duplicates]:
    """Splits a set without splits: `is_val` says for each image whether it goes to `val`. Returns the set, and the
    duplicates in the new order of images."""
    train = [index for index, in_val in enumerate(is_val) if not in_val]
    val = [index for index, in_val in enumerate(is_val) if in_val]
    if not train or not val:
        which = "test" if train else "training"
        raise ValueError(f"{data.name} no longer has any of the {which} images of the run that --from comes from")
    return replace(data, train=data.val.subset(train), val=data.val.subset(val)), duplicates.subset(train + val)


def _refuse_groups_of_parent(data: Data, parent: Run) -> None:
    """Raises ValueError if a group has images in the parent's training split and in its test split."""
    assert data.train is not None
    if data.group_column is not None and (shared := shared_groups(data.train, data.val, data.group_column)):
        column = data.group_column
        raise ValueError(
            f"group_column={column!r}: {parent.path} was trained on images of the same {column} as {shared.shared} of "
            f"its {shared.evaluated} test images: train it again with --group-column {column}, or start from a network "
            "that was not trained on this set"
        )


def _with_validation(data: Data, duplicates: Duplicates, seed: int, sides: Mapping[str, str]) -> tuple[Data, bool]:
    """The set without its test split, but with a validation split (the parent's, if it had one); and whether there is a
    validation split."""
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
    enough = 2 if data.has_boxes else 2 * len(data.classes)  # an image with boxes shows several classes
    if fitting.train is None or len(fitting.val) < enough:
        return replace(whole, train=data.train), False
    return fitting, True


def _with_own_validation(data: Data, duplicates: Duplicates, validation_files: Collection[str]) -> Data:
    """The set with its own validation split. Training images with a copy in it are left out."""
    assert data.train is not None
    validation = [index for index, file in enumerate(data.train.files) if file in validation_files]
    groups = joined_groups(replace(data, train=None, val=data.train), duplicates.groups)
    validated = {groups[index] for index in validation}
    training = [index for index, group in enumerate(groups) if group not in validated]
    copies = f"copies of other splits' images{_or_of_groups(data)}"
    if not training or not validation:
        raise ValueError(f"{data.name}: without {copies} no training or no validation images are left")
    fitting = replace(data, train=data.train.subset(training), val=data.train.subset(validation))
    fitting.check_classes(fitting.train_and_val[0], f"without {copies} no training images are left in the classes")
    return fitting
