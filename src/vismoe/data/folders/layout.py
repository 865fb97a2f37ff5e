"""Decides which folders of a data set are splits and which are classes."""

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
"""Folder names of each split, in lower case. If a data set has several validation or test folders, the first name in
this order is used."""
SUFFIX = re.compile(r"[ _-]?(set|data|dataset|images|split)$")
"""Accepted suffixes of these names, as in training_set."""


@dataclass(frozen=True)
class Layout:
    """The folders of a data set.

    - `train`, `validation`, `test`: name of the folder of each split; None if there is none. `train` is "" for a data
      set without splits. If there is no training split, only one of the others is used, as `validation`.
    - `notes`: notes to the user about folders that are not used, or not used as their names suggest.
    """

    train: str | None
    validation: str | None = None
    test: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def folders(self) -> list[str]:
        """The folders that are used: training, validation, test."""
        return [name for name in (self.train, self.validation, self.test) if name is not None]


def split_of(name: str) -> Split | None:
    """The split that a folder name means, in upper or lower case; None for other names."""
    plain = SUFFIX.sub("", name.lower())
    return next((split for split, names in SPLITS.items() if plain in names), None)


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted; with links to folders, without hidden and system folders."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_skipped(entry.name))


def find_layout(root: Path, files: Sequence[str], has_table: bool = False) -> Layout:
    """Finds the layout of a data set.

    Folders with names of splits are splits if no other folder in `root` has images. Otherwise they are classes.

    **Arguments:**

    - `root`: the folder of the data set.
    - `files`: paths of the image files, relative to `root`.
    - `has_table`: whether `root` has a table with labels; default False.

    **Raises:** ValueError if two folders are training splits. Without a table also if other folders lie beside two
    splits, or if folders look like splits with unknown names: all of them have the same subfolders.
    """
    filled = {file.partition("/")[0] for file in files if "/" in file}
    names = subfolders(root)
    by_split: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for name in names:
        if (split := split_of(name)) is not None:
            by_split[split].append(name)
    splits = [name for folders in by_split.values() for name in folders]
    others = [name for name in names if name not in splits and name in filled]
    if splits and not others:
        empty = [name for name in names if name not in splits]
        notes = (f"folders without images are not used: {_listed(empty)}",) if empty else ()
        layout = _layout_of_splits(root, by_split)
        return replace(layout, notes=(*layout.notes, *notes))
    if len({split_of(name) for name in splits}) > 1 and not has_table:
        raise ValueError(
            f"{root} has the splits {_listed(splits)} and the other folders {_listed(others)}: move the other folders "
            "out; if all of these are classes, write the labels into a metadata.csv (file_name,label)"
        )
    if not has_table:
        _check_no_unknown_splits(root, names, files)
    note = f"not read as a split, because the folder has classes too ({_listed(others)}): {_listed(splits)}"
    return Layout("", notes=(note,) if splits else ())


def _layout_of_splits(root: Path, by_split: Mapping[Split, list[str]]) -> Layout:
    if len(by_split["train"]) > 1:
        raise ValueError(f"{root} has several training splits, {_listed(by_split['train'])}: keep one")
    ranked = {split: sorted(folders, key=_rank) for split, folders in by_split.items()}
    train, validation, test = (ranked[split][0] if ranked[split] else None for split in SPLITS)
    if validation is None or train is None:  # only one split for evaluation is used
        validation, test = validation or test, None
    used = (train, validation, test)
    unused = tuple(name for folders in ranked.values() for name in folders if name not in used)
    notes = (f"evaluation uses {validation}/; not used: {_listed(unused)}",) if unused else ()
    return Layout(train, validation, test, notes)


def _rank(name: str) -> tuple[int, str]:
    plain = SUFFIX.sub("", name.lower())
    return next(names.index(plain) for names in SPLITS.values() if plain in names), name


def _check_no_unknown_splits(root: Path, names: Sequence[str], files: Collection[str]) -> None:
    """Raises ValueError for folders that look like splits and not like classes: all have images in the same subfolders,
    two or more, and nowhere else. Also raises ValueError if splits are inside classes, or inside a single folder."""
    # For each folder its subfolders with images; "" if it has images itself.
    inside: dict[str, set[str]] = {name: set() for name in names}
    for file in files:
        name, _, rest = file.partition("/")
        if rest and name in inside:
            inside[name].add(rest.partition("/")[0] if "/" in rest else "")
    most = max(inside.values(), key=len, default=set())
    if most and all(folders and all(map(split_of, folders)) for folders in inside.values()):
        if len(inside) == 1:
            raise ValueError(f"{root} has only the folder {names[0]}/, which has the splits: use {root / names[0]}")
        raise ValueError(
            f"{root}: {_listed(names)} have splits inside ({_listed(sorted(most))}): put the classes into the splits, "
            f"as in train/{names[0]}"
        )
    if len(inside) > 1 and all(
        len(folders) > 1 and "" not in folders and folders <= most for folders in inside.values()
    ):
        raise ValueError(
            f"{root}: {_listed(names)} have the same subfolders ({_listed(sorted(most))}) and look like splits: "
            "name them train, val and test; if they are classes, write the labels into a metadata.csv (file_name,label)"
        )


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"{name}/" for name in names[:most]) + more
