"""How the folders of a set are read: as its splits, as its classes, or not at all."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..images import is_skipped

Split = Literal["train", "validation", "test"]
SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "validation": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout"),
}
"""The names of each split's folder, in lower case. Of several folders of one split that is evaluated on the first in
this order is used."""
SUFFIX = re.compile(r"[ _-]?(set|data|dataset|images|split)$")
"""What may follow such a name, as in training_set."""


@dataclass(frozen=True)
class Layout:
    """The folders of a set, by their names.

    - `train`, `validation`, `test`: the folder of each split; "" for a set in one piece whose images are `train`; None
      where there is none. Of a set without a training split only one of the others is used.
    - `notes`: what is to be said of folders that are not used, or not as their names may suggest.
    """

    train: str | None
    validation: str | None = None
    test: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def folders(self) -> list[str]:
        """The folders that are used, the training split first."""
        return [name for name in (self.train, self.validation, self.test) if name is not None]


def split_of(name: str) -> Split | None:
    """The split that a folder is by its name, whatever the case; None for another name."""
    plain = SUFFIX.sub("", name.lower())
    return next((split for split, names in SPLITS.items() if plain in names), None)


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder that may be classes or splits, sorted: links to folders too, but no hidden
    ones, and none of the system's."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_skipped(entry.name))


def find_layout(root: Path, files: Sequence[str], has_table: bool = False) -> Layout:
    """The layout of a set.

    Folders are splits where they are named as such, in any case, and no other folder with images lies beside them. A
    folder with a split's name beside classes is a class.

    **Arguments:** `files`: the image files below `root`; `has_table`: whether a table says the labels.

    **Raises:** ValueError where two folders are the training split. Without a table, also where other folders lie
    beside two splits, and where folders that are not known as splits look like some, having the same subfolders.
    """
    filled = {file.partition("/")[0] for file in files if "/" in file}
    names = subfolders(root)
    by_split: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for name in names:
        if (split := split_of(name)) is not None:
            by_split[split].append(name)
    splits = [name for found in by_split.values() for name in found]
    others = [name for name in names if name not in splits and name in filled]
    if splits and not others:
        empty = [name for name in names if name not in splits]
        notes = (f"{_listed(empty)} without images beside the splits: not used",) if empty else ()
        layout = _layout_of_splits(root, by_split)
        return replace(layout, notes=(*layout.notes, *notes))
    if len({split_of(name) for name in splits}) > 1 and not has_table:
        raise ValueError(
            f"{root} has the splits {_listed(splits)} and beside them {_listed(others)}: move what belongs to no split "
            "out of the folder; where all of these are classes, say so in a metadata.csv (file_name,label)"
        )
    if not has_table:
        _check_no_unknown_splits(root, names, files)
    is_none = f"{_listed(splits)} is not read as a split, as {_listed(others)} lies beside it"
    return Layout("", notes=(is_none,) if splits else ())


def _layout_of_splits(root: Path, by_split: Mapping[Split, list[str]]) -> Layout:
    if len(by_split["train"]) > 1:
        raise ValueError(f"{root} has several training splits, {_listed(by_split['train'])}: which one is it?")
    ranked = {split: sorted(found, key=_rank) for split, found in by_split.items()}
    train, validation, test = (ranked[split][0] if ranked[split] else None for split in SPLITS)
    if validation is None or train is None:  # one split to evaluate on
        validation, test = validation or test, None
    used = (train, validation, test)
    unused = tuple(name for found in ranked.values() for name in found if name not in used)
    notes = (f"{_listed(unused)} is not used: evaluated on is {validation}/",) if unused else ()
    return Layout(train, validation, test, notes)


def _rank(name: str) -> tuple[int, str]:
    plain = SUFFIX.sub("", name.lower())
    return next(names.index(plain) for names in SPLITS.values() if plain in names), name


def _check_no_unknown_splits(root: Path, names: Sequence[str], files: Collection[str]) -> None:
    """Raises ValueError where each folder has its images in the same two or more subfolders, or in some of those: they
    are splits that this module does not know, and not classes. So it does where splits lie inside of classes, or of
    one folder around them."""
    inside: dict[str, set[str]] = {name: set() for name in names}  # subfolders with images; "" for images beside them
    for file in files:
        name, _, rest = file.partition("/")
        if rest and name in inside:
            inside[name].add(rest.partition("/")[0] if "/" in rest else "")
    largest = max(inside.values(), key=len, default=set())
    if largest and all(found and all(map(split_of, found)) for found in inside.values()):
        if len(inside) == 1:
            raise ValueError(f"{root} holds {names[0]}/ alone, which has the splits: name {root / names[0]}")
        raise ValueError(
            f"{root}: {_listed(names)} have splits inside ({_listed(sorted(largest))}): put the splits above the "
            f"classes, as in train/{names[0]}"
        )
    if len(inside) > 1 and all(len(found) > 1 and "" not in found and found <= largest for found in inside.values()):
        raise ValueError(
            f"{root}: {_listed(names)} have the same subfolders ({_listed(sorted(largest))}) and look like splits: "
            "name them train, val and test; where they are the classes, say so in a metadata.csv (file_name,label)"
        )


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"{name}/" for name in names[:most]) + more
