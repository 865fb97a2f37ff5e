"""A random split of a folder in one piece: a share of each class, and each group of images on one side."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

import torch

from ..batches import mix_seeds
from ..image_set import Data
from ..images import Unreadable
from .check import with_image_stats
from .duplicates import find_duplicates
from .fingerprints import Fingerprint, try_fingerprints
from .grouped_split import grouped_split
from .groups import joined_groups


def split_folder(
    data: Data, seed: int, share: float = 0.25, workers: int = 0, moved: Sequence[str] | None = None
) -> Data:
    """Splits a set in one piece (`train` is None) into `train` and `val`.

    A share of each class is drawn by `draw_of_each_class`. Where copies of an image, exact or near, are on both sides
    after that, or images with one value of the set's `group_column`, `grouped_split` moves images until they are not; a
    folder without copies, and without a `group_column`, is split as drawn.

    **Arguments:** `seed`: of the draw; `share`: of the images in `val`, default 0.25; `workers`: processes that decode
    the images, each once, default 0: this process; `moved`: `Data.moved` of an earlier split, the files that change
    sides after the draw; nothing is decoded then.

    **Returns:** the set with `train`, `val` and `moved`, and, where the images were decoded, `unreadable`. Files that
    cannot be decoded stay in the split that they were drawn for.

    **Raises:** ValueError if there are too few images for a validation split.
    """
    whole = data.val
    try:
        drawn = draw_of_each_class(_label_names(data), seed, share)
        if moved is None:
            prints = try_fingerprints(whole, workers)
            validation = _without_groups_on_both_sides(data, prints, drawn, seed, share)
            data = replace(data, unreadable=tuple(entry for entry in prints if isinstance(entry, Unreadable)))
            data = with_image_stats(data, [entry.stats for entry in prints if isinstance(entry, Fingerprint)])
        else:
            files = set(moved)
            validation = drawn ^ {index for index, file in enumerate(whole.files) if file in files}
    except ValueError as error:
        raise ValueError(f"{data.name}: {error}") from error
    train = whole.subset([index for index in range(len(whole)) if index not in validation])
    changed = tuple(whole.files[index] for index in sorted(drawn ^ validation))
    return replace(data, train=train, val=whole.subset(sorted(validation)), moved=changed)


def _label_names(data: Data) -> list[tuple[str, ...]]:
    """The names of each image's classes."""
    rows = data.val.labels.tolist()
    if not data.multi_label:
        return [(data.classes[label],) for label in rows]
    return [tuple(name for name, shown in zip(data.classes, row, strict=True) if shown) for row in rows]


def _without_groups_on_both_sides(
    data: Data, prints: Sequence[Fingerprint | Unreadable], drawn: set[int], seed: int, share: float
) -> set[int]:
    """The validation images, changed so that none has a copy, or an image of its group, in the training split."""
    readable = [index for index, print_ in enumerate(prints) if isinstance(print_, Fingerprint)]
    fingerprints = [print_ for print_ in prints if isinstance(print_, Fingerprint)]
    drawn_places = [place for place, index in enumerate(readable) if index in drawn]
    if not drawn_places:  # unreadable images have no copies
        return drawn
    usable = replace(data, val=data.val.subset(readable))
    groups = joined_groups(usable, find_duplicates(fingerprints).groups)
    _, validation = grouped_split(usable.val.labels, groups, seed, share, drawn_places)
    return drawn.difference(readable) | {readable[place] for place in validation}


def draw_of_each_class(labels: Sequence[tuple[str, ...]], seed: int, share: float) -> set[int]:
    """Draws a share of the images of each class (of each combination of labels) by the seed. A class of two images or
    more gives at least one and not all; the combinations that occur once are drawn from together. Each label keeps an
    image to train on. Runs of versions that did not search for copies have this split.

    **Arguments:** `labels`: the names of each image's classes.

    **Raises:** ValueError if there are too few images for a validation split.
    """
    by_labels: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, names in enumerate(labels):
        by_labels[tuple(sorted(names))].append(number)
    single = [numbers[0] for _, numbers in sorted(by_labels.items()) if len(numbers) == 1]
    groups = [numbers for _, numbers in sorted(by_labels.items()) if len(numbers) > 1] + [single]
    remaining = Counter(name for names in labels for name in names)
    validation: set[int] = set()
    for numbers in groups:
        if numbers:
            # Each group has its own seed: a new class does not change the split of the others.
            group_seed = crc32("\0".join(sorted(labels[numbers[0]])).encode())
            generator = torch.Generator().manual_seed(mix_seeds(seed, group_seed))
            missing = min(max(1, round(share * len(numbers))), len(numbers) - 1)
            for place in torch.randperm(len(numbers), generator=generator).tolist():
                names = labels[numbers[place]]
                if missing and all(remaining[name] > 1 for name in names):
                    remaining.subtract(names)
                    validation.add(numbers[place])
                    missing -= 1
    if not validation:
        raise ValueError("no class has two images to split: expected at least two of a class")
    return validation
