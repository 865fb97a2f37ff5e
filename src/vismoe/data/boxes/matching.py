"""Finds the image that an annotation means, and the split that a name means."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath

from ..folders.layout import Split, split_of

SPLIT_NAMES: Mapping[Split | None, str] = {
    None: "set",
    "train": "training split",
    "validation": "validation split",
    "test": "test split",
}
"""What messages call a split; None: a data set without splits."""


class ImageIndex:
    """The images of a folder, found by the names that annotations give them.

    **Arguments:**

    - `files`: paths of the images, relative to the folder of the data set.
    """

    def __init__(self, files: Collection[str]):
        self.files = files
        self.by_name: dict[str, list[str]] = defaultdict(list)
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        for file in files:
            path = PurePosixPath(file)
            self.by_name[path.name].append(file)
            self.by_stem[path.stem].append(file)

    def named(self, name: str, near: str, split: Split | None) -> str | None:
        """The image whose path is `name`, or ends with it. If there are several, the one nearest to the annotation.

        **Arguments:**

        - `name`: name or path in the annotation; may have backslashes.
        - `near`: path of the annotation file, relative to the folder of the data set.
        - `split`: split of the annotation; images in the folder of another split are not accepted.

        **Returns:** the path of the image; None if there is none.

        **Raises:** ValueError if several images are equally near.
        """
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        if not parts:
            return None
        ending = "/".join(parts)
        found = [file for file in self.by_name.get(parts[-1], ()) if file == ending or file.endswith(f"/{ending}")]
        if not found:  # a path on another machine
            found = self.by_name.get(parts[-1], []) if name.startswith("/") or ":" in parts[0] else []
        return _nearest(name, found, near, split)

    def with_stem(self, stem: str, near: str, split: Split | None) -> str | None:
        """The image with this name, whatever its suffix; arguments and result as of `named`."""
        return _nearest(stem, self.by_stem.get(stem, []), near, split)


def _nearest(name: str, found: Iterable[str], near: str, split: Split | None) -> str | None:
    found = [file for file in found if split is None or split_of_path(file) in (split, None)]
    if not found:
        return None
    folders = PurePosixPath(near).parent.parts
    scores = {file: _common(folders, PurePosixPath(file).parent.parts) for file in found}
    highest = max(scores.values())
    best = [file for file, score in scores.items() if score == highest]
    if len(best) > 1:
        raise ValueError(
            f"{name!r} may be {best[0]} or {best[1]}: give images different names, or write the path of the image "
            "into the annotation"
        )
    return best[0]


def _common(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[int, int]:
    """How near two folders are: number of equal parts at the beginning and at the end; and minus their distance."""
    beginning = _equal(first, second)
    end = _equal(first[beginning:][::-1], second[beginning:][::-1])
    return beginning + end, -len(first) - len(second) + 2 * (beginning + end)


def _equal(first: Iterable[str], second: Iterable[str]) -> int:
    number = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        number += 1
    return number


def split_of_folder(name: str) -> Split | None:
    """The split that the name of a folder means; numbers at its end, as in train2017, do not count."""
    return split_of(re.sub(r"[ _-]?\d+$", "", name))


def split_of_path(file: str) -> Split | None:
    """The split that the first folder with the name of a split in a path means; None if there is none."""
    splits = map(split_of_folder, PurePosixPath(file).parent.parts)
    return next((split for split in splits if split is not None), None)


def split_of_stem(stem: str) -> Split | None:
    """The split that a word in the name of a file means, as in instances_train2017."""
    splits = map(split_of, re.findall("[a-z]+", stem.lower()))
    return next((split for split in splits if split is not None), None)


def by_split(files: Iterable[str]) -> Mapping[Split | None, list[str]]:
    """Files by the splits that their folders mean; all under None if there are no such folders.

    **Raises:** ValueError if only some files are in such folders.
    """
    splits: dict[Split | None, list[str]] = defaultdict(list)
    for file in files:
        splits[split_of_path(file)].append(file)
    if None in splits and len(splits) > 1:
        named = next(split for split in splits if split is not None)
        raise ValueError(
            f"{splits[named][0]} is in the folder of a split, but {splits[None][0]} is not: put all images with boxes "
            "into the folders of splits (train, val, test), or none"
        )
    return splits
