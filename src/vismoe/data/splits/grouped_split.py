"""A set split in two, with all copies of an image on one side."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..batches import mix_seeds
from ..image_set import Data
from .duplicates import Duplicates

TRIES = 8
"""Orders that are tried while some class is not held out: where groups tie classes together, none may do."""


def grouped_split(
    labels: Int[Tensor, " N"] | Bool[Tensor, "N K"],
    groups: Sequence[int],
    seed: int,
    share: float = 0.25,
    drawn: Collection[int] = (),
) -> tuple[list[int], list[int]]:
    """Indices to train on and indices to hold out, in order: none of the `groups` (N) is on both sides, and of each
    class (of images without a label too) about that `share` is held out, as near as groups allow.

    A class of two groups or more has an image on either side; one of a single group is trained on alone. Where a group
    holds several classes, so that one's wish may be another's loss, that each is trained on comes first, and as many as
    a few orders allow are held out. Classes come in turn, those of the fewest groups first (after Sechidis et al. 2011,
    "On the stratification of multi-label data"); the seed draws the order of groups.

    **Arguments:** `drawn`: indices that were held out by another rule, which did not know of groups. What of them is no
    part of a group on both sides stays held out, and only what is missing then is chosen, of the groups that were on
    both sides first; nothing is where no group was.

    **Raises:** ValueError where nothing can be held out.
    """
    if len(groups) != len(labels):
        raise ValueError(f"{len(groups)} groups for {len(labels)} images: expected one for each")
    if not 0 < share < 1:
        raise ValueError(f"share={share:g}: expected a number between 0 and 1")
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    for group, names in zip(groups, _names(labels), strict=True):
        counts[group].update(names)
    begun, held = {groups[index] for index in drawn}, set(drawn)
    torn = begun & {group for index, group in enumerate(groups) if index not in held}
    if drawn and not torn:
        out = begun
    else:
        tries = [_draw(counts, mix_seeds(seed, 0), share, begun - torn, torn)]
        while len(tries) < TRIES and _not_held_out(counts, tries[-1]):
            tries.append(_draw(counts, mix_seeds(seed, len(tries)), share, begun - torn, torn))
        out = min(tries, key=lambda held: len(_not_held_out(counts, held)))
    if not out:
        raise ValueError(
            "no class has two images that are not copies of each other, so that none can be held out: "
            "expected at least two of a class"
        )
    val = [index for index, group in enumerate(groups) if group in out]
    return [index for index, group in enumerate(groups) if group not in out], val


def _names(labels: Tensor) -> list[list[int]]:
    """The classes of each image; of several labels, none is a class of its own, -1."""
    if labels.ndim == 1:
        return [[label] for label in labels.tolist()]
    return [row.nonzero().ravel().tolist() or [-1] for row in labels]


def _not_held_out(counts: dict[int, Counter[int]], out: set[int]) -> set[int]:
    """Classes of two groups or more of which none is held out."""
    spread = Counter(name for names in counts.values() for name in names)
    return {name for name, number in spread.items() if number > 1} - {name for group in out for name in counts[group]}


def _draw(
    counts: dict[int, Counter[int]], seed: int, share: float, begun: Collection[int], first: Collection[int]
) -> set[int]:
    """The groups that are held out: those in `begun`, and more, of those in `first` before others."""
    generator, numbers = torch.Generator().manual_seed(seed), sorted(counts)
    order = [numbers[place] for place in torch.randperm(len(numbers), generator=generator).tolist()]
    order.sort(key=lambda group: group not in first)
    of: dict[int, list[int]] = defaultdict(list)
    left: Counter[int] = Counter()
    for group in order:
        left.update(counts[group])
        for name in counts[group]:
            of[name].append(group)
    wanted = {name: share * number for name, number in left.items()}
    held: Counter[int] = Counter()
    out: set[int] = set()

    def movable(group: int) -> bool:
        return group not in out and all(left[name] > number for name, number in counts[group].items())

    def gain(group: int) -> float:
        """How much nearer to their shares the classes of a group come if it is held out."""
        return sum(
            (abs(held[name] - wanted[name]) - abs(held[name] + number - wanted[name])) / wanted[name]
            for name, number in counts[group].items()
        )

    def move(group: int) -> None:
        out.add(group)
        held.update(counts[group])
        left.subtract(counts[group])

    for group in begun:
        move(group)
    rarest = sorted(of, key=lambda name: (len(of[name]), name))
    for name in rarest:
        if not held[name] and (choice := [group for group in of[name] if movable(group)]):
            move(max(choice, key=gain))
    for name in rarest:
        for group in of[name]:
            if held[name] < wanted[name] and movable(group) and gain(group) > 0:
                move(group)
    return out


def hold_out(data: Data, duplicates: Duplicates, seed: int, share: float = 0.25) -> tuple[Data, Duplicates]:
    """A set in one piece (`train` is None) with a share of it held out by `grouped_split`, and the duplicates of its
    images in their new order, the training part's before the held-out part's.

    **Raises:** ValueError where nothing can be held out, or a class has no image left.
    """
    if lost := data.classes_without(data.val):
        raise ValueError(f"{data.name}: no image that can be read is left of {', '.join(lost)}")
    try:
        train, val = grouped_split(data.val.labels, duplicates.groups, seed, share)
    except ValueError as error:
        raise ValueError(f"{data.name}: {error}") from error
    return replace(data, train=data.val.subset(train), val=data.val.subset(val)), duplicates.subset(train + val)


def leakage(data: Data, duplicates: Duplicates) -> list[tuple[int, int]]:
    """Held-out images that have a copy, exact or near, in the training part: each one's index in its part, and that
    of the first of its group in the training part."""
    border = 0 if data.train is None else len(data.train)
    first: dict[int, int] = {}
    for index, group in enumerate(duplicates.groups[:border]):
        first.setdefault(group, index)
    return [(index, first[group]) for index, group in enumerate(duplicates.groups[border:]) if group in first]


def conflicts(data: Data, duplicates: Duplicates) -> list[tuple[int, int]]:
    """Exact duplicates that are not labelled alike; indices count through the training part, then the held-out one."""
    labels = torch.cat([part.labels for part in data.parts])
    return [(a, b) for a, b in duplicates.exact if not torch.equal(labels[a], labels[b])]
