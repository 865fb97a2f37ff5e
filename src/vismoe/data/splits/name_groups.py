"""File names that share a beginning: these images may be of one patient, slide or video."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..image_set import Data, ImageSet

BEGINNING = re.compile(r"(.*\d.*?)[-_. ]+[^-_. ]+")
"""A file name without its suffix: the first group is all before its last part, as in slide7-13; it has a digit, so that
IMG_0001 and cat_0001 have none."""
SHARE = 0.5
"""Smallest fraction of the images whose beginning other images have too."""
FEWEST = 5
"""Smallest number of beginnings of two or more images."""
OF_CLASS = 0.9
"""If this fraction of them has the most frequent beginning of its class, beginnings are names of classes."""
EXAMPLES = 2
"""Number of beginnings in the note."""


@dataclass(frozen=True)
class NameGroups:
    """Beginnings of file names that are in both the training and the validation split.

    - `largest`: the most frequent beginnings, each with its number of images.
    - `groups`: number of beginnings of two or more images.
    - `shared`: number of validation images whose beginning training images have too.
    - `evaluated`: number of validation images.
    """

    largest: tuple[tuple[str, int], ...]
    groups: int
    shared: int
    evaluated: int


def find_name_groups(data: Data) -> NameGroups | None:
    """Finds out whether file names look like those of several images of each of several things (slide7-13, slide7-14).

    This is so if at least half of the images share a beginning with others, if there are at least five such beginnings,
    and if they are not just other names of the classes.

    **Arguments:**

    - `data`: the data set.

    **Returns:** the beginnings; None if names do not look so, if no beginning is in both splits, or if the data set has
    a `group_column`.
    """
    if data.group_column is not None or data.train is None:
        return None
    train, val = _beginnings(data.train), _beginnings(data.val)
    counts = Counter(name for name in (*train, *val) if name)
    groups = Counter({name: count for name, count in counts.items() if count > 1})
    if len(groups) < FEWEST or groups.total() < SHARE * len(train + val):
        return None
    of_classes: dict[str, Counter[str]] = {}
    labels = [str(label) for images in (data.train, data.val) for label in images.labels.tolist()]
    for label, name in zip(labels, train + val, strict=True):
        if name in groups:
            of_classes.setdefault(label, Counter())[name] += 1
    if sum(max(names.values()) for names in of_classes.values()) >= OF_CLASS * groups.total():
        return None
    trained = groups.keys() & set(train)
    shared = sum(name in trained for name in val)
    return NameGroups(tuple(groups.most_common(EXAMPLES)), len(groups), shared, len(val)) if shared else None


def format_name_groups(found: NameGroups) -> str:
    """A note about the result of `find_name_groups`, with the option that helps."""
    examples = ", ".join(f"{name}: {count:,} images" for name, count in found.largest)
    return (
        f"{found.shared:,} of {found.evaluated:,} evaluation images have file names with the same beginning as "
        f"training images ({examples}, …). If a beginning stands for a patient, slide or video, metrics may be too "
        "good: keep each in one split with --group-column (docs/training.md)"
    )


def _beginnings(images: ImageSet) -> list[str]:
    """The beginning of each file's name; "" for a name without one, and for images that are not files."""
    names = [PurePosixPath(file).stem for file in images.files] or [""] * len(images)
    return [match[1] if (match := BEGINNING.fullmatch(name)) else "" for name in names]
