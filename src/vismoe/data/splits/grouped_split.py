"""A random training/validation split that keeps each group of images in one split."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..batches import mix_seeds
from ..image_set import Data
from .duplicates import Duplicates
from .groups import joined_groups

MAX_TRIES = 8
"""Number of random orders of the groups to try while a class has no validation image. If groups hold several classes,
no order may work."""
ClassCounts = Mapping[int, Counter[int]]
"""For each group, the number of its images of each class."""


def grouped_split(
    labels: Int[Tensor, " N"] | Bool[Tensor, "N K"],
    groups: Sequence[int],
    seed: int,
    share: float = 0.25,
    drawn: Collection[int] = (),
) -> tuple[list[int], list[int]]:
    """Splits images at random into training and validation images. All images of a group go to one split.

    The validation fraction of each class is as close to `share` as the groups allow. Images without a label count as a
    class. The rules, the most important first:

    1. Each class has a training image. So all images of a class with a single group are training images.
    2. Each class with two or more groups has a validation image. If groups hold several classes, this may not be
       possible for all classes: of several random orders, the one with the most such classes is used.
    3. Further groups go to the validation split as long as they bring its classes closer to `share`.

    Classes with the fewest groups choose first (after Sechidis et al. 2011, "On the stratification of multi-label
    data").

    **Arguments:**

    - `labels`: class numbers (N,), or which of K classes each image shows (N, K).
    - `groups`: (N,), the group of each image.
    - `seed`: decides the order of the groups.
    - `share`: validation fraction, between 0 and 1; default 0.25.
    - `drawn`: indices of the validation images of an earlier split that ignored groups; default: none. If no group is
      in both of its splits, it is returned unchanged. Otherwise its validation groups stay, and the groups that were in
      both splits are the first to be added.

    **Returns:** indices of the training images, and of the validation images, both ascending.

    **Raises:** ValueError if there is no possible validation image, `groups` has another length than `labels`, or
    `share` is out of range.
    """
    if len(groups) != len(labels):
        raise ValueError(f"{len(groups)} groups for {len(labels)} images: expected one for each")
    if not 0 < share < 1:
        raise ValueError(f"share={share:g}: expected a number between 0 and 1")
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    for group, class_numbers in zip(groups, _class_numbers(labels), strict=True):
        counts[group].update(class_numbers)
    drawn_indices, drawn_groups = set(drawn), {groups[index] for index in drawn}
    divided = drawn_groups & {group for index, group in enumerate(groups) if index not in drawn_indices}
    if drawn and not divided:
        validation = drawn_groups
    else:
        validation = _best_of_several(counts, seed, share, drawn_groups - divided, divided)
    if not validation:
        raise ValueError(
            "no class has two images that are not copies of each other or of one group, so there can be no validation "
            "split: expected at least two in some class"
        )
    val = [index for index, group in enumerate(groups) if group in validation]
    return [index for index, group in enumerate(groups) if group not in validation], val


def _class_numbers(labels: Tensor) -> list[list[int]]:
    """The class numbers of each image. In a multi-label data set an image without a label has the class -1."""
    if labels.ndim == 1:
        return [[label] for label in labels.tolist()]
    return [row.nonzero().ravel().tolist() or [-1] for row in labels]


def _best_of_several(
    counts: ClassCounts, seed: int, share: float, initial: Collection[int], preferred: Collection[int]
) -> set[int]:
    """The validation groups of the random order that leaves the fewest classes without a validation image."""
    tries = [_choose(counts, mix_seeds(seed, 0), share, initial, preferred)]
    while len(tries) < MAX_TRIES and _classes_without_validation(counts, tries[-1]):
        tries.append(_choose(counts, mix_seeds(seed, len(tries)), share, initial, preferred))
    return min(tries, key=lambda groups: len(_classes_without_validation(counts, groups)))


def _classes_without_validation(counts: ClassCounts, validation: set[int]) -> set[int]:
    """The classes with two or more groups that have no validation group."""
    group_counts = Counter(name for group in counts.values() for name in group)
    return {name for name, number in group_counts.items() if number > 1} - {
        name for group in validation for name in counts[group]
    }


class _ValidationGroups:
    """The validation groups, with the number of images of each class in both splits."""

    def __init__(self, counts: ClassCounts, share: float):
        self.counts = counts
        self.groups: set[int] = set()
        self.validation: Counter[int] = Counter()
        self.training: Counter[int] = Counter()
        for group_counts in counts.values():
            self.training.update(group_counts)
        self.target = {name: share * number for name, number in self.training.items()}

    def add(self, group: int) -> None:
        self.groups.add(group)
        self.validation.update(self.counts[group])
        self.training.subtract(self.counts[group])

    def can_add(self, group: int) -> bool:
        """Whether each class of the group would still have a training image."""
        return group not in self.groups and all(
            self.training[name] > number for name, number in self.counts[group].items()
        )

    def gain(self, group: int) -> float:
        """How much closer the classes of the group would come to their targets, as fractions of these, summed."""
        return sum(
            (abs(self.validation[name] - self.target[name]) - abs(self.validation[name] + number - self.target[name]))
            / self.target[name]
            for name, number in self.counts[group].items()
        )


def _choose(
    counts: ClassCounts, seed: int, share: float, initial: Collection[int], preferred: Collection[int]
) -> set[int]:
    """Chooses validation groups: all of `initial`, then further ones in a random order, those in `preferred` first."""
    generator, numbers = torch.Generator().manual_seed(seed), sorted(counts)
    order = [numbers[place] for place in torch.randperm(len(numbers), generator=generator).tolist()]
    order.sort(key=lambda group: group not in preferred)
    groups_of: dict[int, list[int]] = defaultdict(list)
    for group in order:
        for name in counts[group]:
            groups_of[name].append(group)
    rarest_first = sorted(groups_of, key=lambda name: (len(groups_of[name]), name))
    chosen = _ValidationGroups(counts, share)
    for group in initial:
        chosen.add(group)
    for name in rarest_first:
        candidates = [group for group in groups_of[name] if chosen.can_add(group)]
        if candidates and not chosen.validation[name]:
            chosen.add(max(candidates, key=chosen.gain))
    for name in rarest_first:
        for group in groups_of[name]:
            if chosen.validation[name] < chosen.target[name] and chosen.can_add(group) and chosen.gain(group) > 0:
                chosen.add(group)
    return chosen.groups


def split_data(data: Data, duplicates: Duplicates, seed: int, share: float = 0.25) -> tuple[Data, Duplicates]:
    """Splits a data set that has no splits (`train` is None) by `grouped_split`.

    All copies of an image go to one split, and so do all images with the same value in the `group_column`.

    **Arguments:**

    - `data`: the data set, all of its images in `val`.
    - `duplicates`: the duplicates among its images.
    - `seed`: seed of the split.
    - `share`: validation fraction, between 0 and 1; default 0.25.

    **Returns:** the data set with `train` and `val`, and the duplicates of its images in their new order: first those
    of `train`, then those of `val`.

    **Raises:** ValueError if there is no possible validation image, or a class has no image.
    """
    data.check_classes(data.val, "no readable images of")
    try:
        train, val = grouped_split(data.val.labels, joined_groups(data, duplicates.groups), seed, share)
    except ValueError as error:
        raise ValueError(f"{data.name}: {error}") from error
    return replace(data, train=data.val.subset(train), val=data.val.subset(val)), duplicates.subset(train + val)


def leakage(data: Data, duplicates: Duplicates) -> list[tuple[int, int]]:
    """The images of `val` that have a copy, exact or near, in `train`.

    **Arguments:**

    - `data`: the data set.
    - `duplicates`: the duplicates among its images, first those of `train`, then those of `val`.

    **Returns:** pairs of the index of an image in `val`, and the index in `train` of the first image of its group.
    """
    training_images = 0 if data.train is None else len(data.train)
    first: dict[int, int] = {}
    for index, group in enumerate(duplicates.groups[:training_images]):
        first.setdefault(group, index)
    return [(index, first[group]) for index, group in enumerate(duplicates.groups[training_images:]) if group in first]


def conflicts(data: Data, duplicates: Duplicates) -> list[tuple[int, int]]:
    """The exact duplicates that have different labels.

    **Arguments:** as `leakage`.

    **Returns:** pairs of indices, counted through `train`, then `val`.
    """
    labels = torch.cat([split.labels for split in data.train_and_val])
    return [(a, b) for a, b in duplicates.exact if not torch.equal(labels[a], labels[b])]
