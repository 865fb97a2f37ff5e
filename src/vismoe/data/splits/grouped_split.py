"""A random split of a set with all copies of an image on one side."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..batches import mix_seeds
from ..image_set import Data
from .duplicates import Duplicates
from .groups import joined_groups

TRIES = 8
"""Most orders that are tried while a class has no image held out: where groups tie classes together, none may work."""


def grouped_split(
    labels: Int[Tensor, " N"] | Bool[Tensor, "N K"],
    groups: Sequence[int],
    seed: int,
    share: float = 0.25,
    drawn: Collection[int] = (),
) -> tuple[list[int], list[int]]:
    """Indices to train on and indices to hold out, in order. None of the `groups` (N) is on both sides, and the share
    of each class (also of images without a label) that is held out is as near to `share` as groups allow.

    A class of two groups or more has an image on either side; the images of a class with one group are all trained on.
    A group may hold several classes. Then it comes first that each class is trained on, and as many classes are held
    out as a few orders allow. Classes take turns, those of the fewest groups first (after Sechidis et al. 2011, "On the
    stratification of multi-label data"); the seed draws the order of groups.

    **Arguments:** `drawn`: indices that another rule held out, which did not know of groups. Those whose group is on
    one side stay held out; what is missing then is chosen, first from the groups that were on both sides. Where no
    group is on both sides, the draw stays as it is.

    **Raises:** ValueError where nothing can be held out.
    """
    if len(groups) != len(labels):
        raise ValueError(f"{len(groups)} groups for {len(labels)} images: expected one for each")
    if not 0 < share < 1:
        raise ValueError(f"share={share:g}: expected a number between 0 and 1")
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    for group, names in zip(groups, _class_numbers(labels), strict=True):
        counts[group].update(names)
    drawn_indices, drawn_groups = set(drawn), {groups[index] for index in drawn}
    divided = drawn_groups & {group for index, group in enumerate(groups) if index not in drawn_indices}
    if drawn and not divided:
        held_out = drawn_groups
    else:
        tries = [_draw(counts, mix_seeds(seed, 0), share, drawn_groups - divided, divided)]
        while len(tries) < TRIES and _not_held_out(counts, tries[-1]):
            tries.append(_draw(counts, mix_seeds(seed, len(tries)), share, drawn_groups - divided, divided))
        held_out = min(tries, key=lambda tried: len(_not_held_out(counts, tried)))
    if not held_out:
        raise ValueError(
            "no class has two images that are not copies of each other or of one group, so that none can be held out: "
            "expected at least two of a class"
        )
    val = [index for index, group in enumerate(groups) if group in held_out]
    return [index for index, group in enumerate(groups) if group not in held_out], val


def _class_numbers(labels: Tensor) -> list[list[int]]:
    """The class numbers of each image; with several labels an image, an image without one has the class -1."""
    if labels.ndim == 1:
        return [[label] for label in labels.tolist()]
    return [row.nonzero().ravel().tolist() or [-1] for row in labels]


def _not_held_out(counts: dict[int, Counter[int]], held_out: set[int]) -> set[int]:
    """Classes of two groups or more none of which is held out."""
    group_counts = Counter(name for names in counts.values() for name in names)
    return {name for name, number in group_counts.items() if number > 1} - {
        name for group in held_out for name in counts[group]
    }


def _draw(
    counts: dict[int, Counter[int]], seed: int, share: float, initial: Collection[int], preferred: Collection[int]
) -> set[int]:
    """The groups that are held out: those in `initial`, then more, those in `preferred` before others."""
    generator, numbers = torch.Generator().manual_seed(seed), sorted(counts)
    order = [numbers[place] for place in torch.randperm(len(numbers), generator=generator).tolist()]
    order.sort(key=lambda group: group not in preferred)
    groups_of: dict[int, list[int]] = defaultdict(list)
    remaining: Counter[int] = Counter()
    for group in order:
        remaining.update(counts[group])
        for name in counts[group]:
            groups_of[name].append(group)
    target = {name: share * number for name, number in remaining.items()}
    moved: Counter[int] = Counter()
    held_out: set[int] = set()

    def movable(group: int) -> bool:
        return group not in held_out and all(remaining[name] > number for name, number in counts[group].items())

    def gain(group: int) -> float:
        """How much nearer to their shares the classes of a group come if it is held out."""
        return sum(
            (abs(moved[name] - target[name]) - abs(moved[name] + number - target[name])) / target[name]
            for name, number in counts[group].items()
        )

    def move(group: int) -> None:
        held_out.add(group)
        moved.update(counts[group])
        remaining.subtract(counts[group])

    for group in initial:
        move(group)
    rarest = sorted(groups_of, key=lambda name: (len(groups_of[name]), name))
    for name in rarest:
        if not moved[name] and (choice := [group for group in groups_of[name] if movable(group)]):
            move(max(choice, key=gain))
    for name in rarest:
        for group in groups_of[name]:
            if moved[name] < target[name] and movable(group) and gain(group) > 0:
                move(group)
    return held_out


def split_data(data: Data, duplicates: Duplicates, seed: int, share: float = 0.25) -> tuple[Data, Duplicates]:
    """Splits a set in one piece (`train` is None) by `grouped_split`: copies are on one side, and so are images with
    one value of the set's `group_column`. Returns it with `train` and `val`, and the duplicates of its images in their
    new order, those of `train` before those of `val`.

    **Raises:** ValueError where nothing can be held out, or a class has no image.
    """
    data.check_classes(data.val, "no image that can be read is left of")
    try:
        train, val = grouped_split(data.val.labels, joined_groups(data, duplicates.groups), seed, share)
    except ValueError as error:
        raise ValueError(f"{data.name}: {error}") from error
    return replace(data, train=data.val.subset(train), val=data.val.subset(val)), duplicates.subset(train + val)


def leakage(data: Data, duplicates: Duplicates) -> list[tuple[int, int]]:
    """The images of `val` that have a copy, exact or near, in `train`: the index of each in `val`, and the index in
    `train` of the first image of its group."""
    border = 0 if data.train is None else len(data.train)
    first: dict[int, int] = {}
    for index, group in enumerate(duplicates.groups[:border]):
        first.setdefault(group, index)
    return [(index, first[group]) for index, group in enumerate(duplicates.groups[border:]) if group in first]


def conflicts(data: Data, duplicates: Duplicates) -> list[tuple[int, int]]:
    """Exact duplicates with different labels; indices count through `train`, then through `val`."""
    labels = torch.cat([part.labels for part in data.train_and_val])
    return [(a, b) for a, b in duplicates.exact if not torch.equal(labels[a], labels[b])]
