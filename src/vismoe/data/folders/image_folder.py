"""A person's folder of images: class folders, or a `metadata.csv` that names the labels; split or in one piece."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from ..image_set import Data, ImageSet
from ..images import IMAGE_SUFFIXES, Unreadable, list_images, read_image
from .metadata import METADATA, Row, read_tables

TRAIN, HELD_OUT = "train", ("val", "validation", "valid", "test")
"""Folders that are parts of a set; of several held-out ones the first in this order is used."""


@dataclass(frozen=True)
class Entry:
    """An image file below the set's folder, the names of what it shows, the other columns of its row of metadata."""

    file: str
    labels: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)


def open_folder(root: Path) -> Data:
    """A folder as a set. Its own split is kept where it has one: `train/` beside `val/` (or validation, valid, test).
    Otherwise all is for evaluation.

    **Raises:** ValueError for a folder without labelled images, a class without any, a class to evaluate on that is not
    in the training part, or a `metadata.csv` that cannot be followed.
    """
    parts = _parts(root)
    images, left_out = list_images(root)
    files = [path.relative_to(root).as_posix() for path in images]
    tables, faults = read_tables(root, ["", *parts], files, [entry.file for entry in left_out])
    unused = tuple(f"{name}/" for name in HELD_OUT if name not in parts) if "" not in parts else ()
    left_out = [entry for entry in (*left_out, *faults) if not entry.file.startswith(unused)]
    multi_label = any(row.several for rows in tables.values() for row in rows.values())
    found = []
    for part in parts:
        own = [file for file in files if not part or file.startswith(f"{part}/")]
        rows = tables.get("", {}) | tables[part] if part in tables else tables.get("")
        entries, rest = _by_class_folder(root, part, own) if rows is None else _by_metadata(part, own, rows)
        if not multi_label:
            rest += [Unreadable(entry.file, f"has no label in {METADATA}") for entry in entries if not entry.labels]
            entries = [entry for entry in entries if entry.labels]
        left_out += rest
        if not any(entry.labels for entry in entries):
            raise ValueError(f"{root / part} has no labelled images{_some(left_out)}")
        found.append(entries)
    classes = _classes(root, parts, found)
    number = {name: index for index, name in enumerate(classes)}
    *train, val = (_image_set(root, entries, number, multi_label) for entries in found)
    return Data(str(root), classes, train[0] if train else None, val, left_out=tuple(left_out))


def may_be_split(root: Path) -> bool:
    """Whether a folder is in one piece, and not one that is never trained on, such as `val/` alone."""
    (first, *others) = _parts(root)
    return not others and first not in HELD_OUT


def _parts(root: Path) -> list[str]:
    """The folders of a set's parts, the training part first; [""] where it comes in one piece."""
    names = [path.name for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    held_out = [name for name in HELD_OUT if name in names][:1]
    if TRAIN in names:
        return [TRAIN, *held_out]
    others = [name for name in names if name not in HELD_OUT and not name.startswith(".")]
    return held_out if held_out and not others else [""]


def _classes(root: Path, parts: Sequence[str], found: Sequence[Sequence[Entry]]) -> list[str]:
    seen = [{label for entry in entries for label in entry.labels} for entries in found]
    if unknown := sorted(seen[-1] - seen[0]):
        raise ValueError(f"{root / parts[1]} has classes that {root / parts[0]} lacks: {', '.join(unknown)}")
    return sorted(seen[0])


def _by_metadata(part: str, files: Iterable[str], rows: Mapping[str, Row]) -> tuple[list[Entry], list[Unreadable]]:
    entries, left_out = [], []
    for file in files:
        if file not in rows:
            left_out.append(Unreadable(file, f"not named in {METADATA}"))
        elif (labels := rows[file].labels) is not None:
            entries.append(Entry(file, labels, rows[file].columns))
        elif (name := _class_folder(part, file)) is not None:
            entries.append(Entry(file, (name,), rows[file].columns))
        else:
            left_out.append(Unreadable(file, f"lies in no class folder, and {METADATA} has no column label"))
    return entries, left_out


def _by_class_folder(root: Path, part: str, files: Iterable[str]) -> tuple[list[Entry], list[Unreadable]]:
    folder = root / part
    classes = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and not p.is_symlink() and p.name[0] != "."]
    if not classes:
        raise ValueError(f"{folder} has no class folders: expected a folder of images for each class, or {METADATA}")
    entries, left_out = [], []
    for file in files:
        name = _class_folder(part, file)
        if name is None:
            left_out.append(Unreadable(file, "lies in no class folder"))
        else:
            entries.append(Entry(file, (name,)))
    if empty := sorted(set(classes) - {entry.labels[0] for entry in entries}):
        accepted = ", ".join(IMAGE_SUFFIXES)
        raise ValueError(f"{folder}: no images in the class folders {', '.join(empty)}; accepted are {accepted}")
    return entries, left_out


def _class_folder(part: str, file: str) -> str | None:
    """The class that the place of an image says; None where it lies in no folder of its part.

    **Raises:** ValueError for a name that is no text.
    """
    name, _, rest = file.removeprefix(f"{part}/" if part else "").partition("/")
    if not rest:
        return None
    if name.encode(errors="replace").decode() != name:
        raise ValueError(f"the name of the class folder {name!a} is not UTF-8: rename it")
    return name


def _image_set(root: Path, entries: Sequence[Entry], number: Mapping[str, int], multi_label: bool) -> ImageSet:
    if multi_label:
        labels = torch.zeros(len(entries), len(number), dtype=torch.bool)
        for row, entry in enumerate(entries):
            labels[row, [number[label] for label in entry.labels]] = True
    else:
        labels = torch.tensor([number[entry.labels[0]] for entry in entries], dtype=torch.int64)
    names = {name for entry in entries for name in entry.columns}
    files = [entry.file for entry in entries]
    columns = {name: [entry.columns.get(name, "") for entry in entries] for name in sorted(names)}
    return ImageSet(labels, partial(_read, root, files), files, columns)


def _read(root: Path, files: Sequence[str], index: int) -> Image.Image:
    return read_image(root / files[index])


def _some(left_out: Sequence[Unreadable]) -> str:
    """A hint at what was left out, for an error of too little that is left."""
    if not left_out:
        return ""
    more = ", …" if len(left_out) > 1 else ""
    return f" ({len(left_out)} left out: {left_out[0].file!r}: {left_out[0].reason}{more})"
