"""The random training/validation split of a folder that has no splits. Each group of images stays in one split."""

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
    """Splits a data set that has no splits (`train` is None) into `train` and `val`.

    First `draw_of_each_class` draws a fraction of each class. If both splits then have copies of one image (exact or
    near), or images with the same value in the `group_column`, `grouped_split` moves images until they do not. A folder
    without copies and without a `group_column` is split as drawn.

    **Arguments:**

    - `data`: the data set, all of its images in `val`.
    - `seed`: seed of the draw.
    - `share`: validation fraction, between 0 and 1; default 0.25.
    - `workers`: number of processes that decode the images, each once; default 0: this process.
    - `moved`: `Data.moved` of an earlier split: the files that change splits after the draw. If given, no image is
      decoded. Default None: images are decoded to find copies.

    **Returns:** the data set with `train`, `val` and `moved`, and with `unreadable` if images were decoded. Files that
    cannot be decoded stay in the split that they were drawn for.

    **Raises:** ValueError if there are too few images for a validation split.
    """
    images = data.val
    try:
        drawn = draw_of_each_class(_label_names(data), seed, share)
        if moved is None:
            results = try_fingerprints(images, workers)
            validation = _with_groups_in_one_split(data, results, drawn, seed, share)
            data = replace(data, unreadable=tuple(entry for entry in results if isinstance(entry, Unreadable)))
            data = with_image_stats(data, [entry.stats for entry in results if isinstance(entry, Fingerprint)])
        else:
            files = set(moved)
            validation = drawn ^ {index for index, file in enumerate(images.files) if file in files}
    except ValueError as error:
        raise ValueError(f"{data.name}: {error}") from error
    train = images.subset([index for index in range(len(images)) if index not in validation])
    changed = tuple(images.files[index] for index in sorted(drawn ^ validation))
    return replace(data, train=train, val=images.subset(sorted(validation)), moved=changed)


def _label_names(data: Data) -> list[tuple[str, ...]]:
    """The class names of each image."""
    rows = data.val.labels.tolist()
    if not data.multi_label:
        return [(data.classes[label],) for label in rows]
    return [tuple(name for name, shown in zip(data.classes, row, strict=True) if shown) for row in rows]


def _with_groups_in_one_split(
    data: Data, results: Sequence[Fingerprint | Unreadable], drawn: set[int], seed: int, share: float
) -> set[int]:
    """The drawn validation images, changed until all images of a group, and all copies, are in one split."""
    readable = [index for index, entry in enumerate(results) if isinstance(entry, Fingerprint)]
    fingerprints = [entry for entry in results if isinstance(entry, Fingerprint)]
    drawn_places = [place for place, index in enumerate(readable) if index in drawn]
    if not drawn_places:  # only unreadable images were drawn, and these have no known copies
        return drawn
    usable = replace(data, val=data.val.subset(readable))
    groups = joined_groups(usable, find_duplicates(fingerprints).groups)
    _, validation = grouped_split(usable.val.labels, groups, seed, share, drawn_places)
    return drawn.difference(readable) | {readable[place] for place in validation}


def draw_of_each_class(labels: Sequence[tuple[str, ...]], seed: int, share: float) -> set[int]:
    """Draws a random fraction of each class as validation images.

    In a multi-label data set a class here is a combination of labels; all combinations with a single image are drawn
    from together. A class with two or more images has both training and validation images. Every label has a training
    image. Runs of versions that did not search for copies have this split.

    **Arguments:**

    - `labels`: the class names of each image.
    - `seed`: seed of the draw.
    - `share`: validation fraction, between 0 and 1.

    **Returns:** the indices of the validation images.

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
            # Each class has its own seed, so a new class does not change the split of the others.
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
