"""A folder of images: class folders, or a `metadata.csv` with the labels; already split or in one piece."""

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
"""Folders of the splits of a set; of several to evaluate on the first in this order is used."""


@dataclass(frozen=True)
class Entry:
    """An image file below the set's folder, its labels, and the other columns of its row of metadata."""

    file: str
    labels: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)


def open_folder(root: Path) -> Data:
    """A folder as a set. Its own split is kept where it has one: `train/` beside `val/` (or validation, valid, test).
    Otherwise `val` has all images, and `train` is None.

    **Raises:** ValueError for a folder without labelled images, a class without any, a class to evaluate on that is not
    in the training split, or a `metadata.csv` that is no such table.
    """
    parts = _split_folders(root)
    images, left_out = list_images(root)
    files = [path.relative_to(root).as_posix() for path in images]
    tables, faults = read_tables(root, ["", *parts], files, [entry.file for entry in left_out])
    unused = tuple(f"{name}/" for name in HELD_OUT if name not in parts) if "" not in parts else ()
    left_out = [entry for entry in (*left_out, *faults) if not entry.file.startswith(unused)]
    multi_label = any(row.several for rows in tables.values() for row in rows.values())
    entries_of_parts = []
    for part in parts:
        part_files = [file for file in files if not part or file.startswith(f"{part}/")]
        rows = tables.get("", {}) | tables[part] if part in tables else tables.get("")
        entries, unlabelled = (
            _by_class_folder(root, part, part_files) if rows is None else _by_metadata(part, part_files, rows)
        )
        if not multi_label:
            unlabelled += [
                Unreadable(entry.file, f"has no label in {METADATA}") for entry in entries if not entry.labels
            ]
            entries = [entry for entry in entries if entry.labels]
        left_out += unlabelled
        if not any(entry.labels for entry in entries):
            raise ValueError(f"{root / part} has no labelled images{_hint_of(left_out)}")
        entries_of_parts.append(entries)
    classes = _classes(root, parts, entries_of_parts)
    class_numbers = {name: index for index, name in enumerate(classes)}
    *train, val = (_image_set(root, entries, class_numbers, multi_label) for entries in entries_of_parts)
    return Data(str(root), classes, train[0] if train else None, val, left_out=tuple(left_out))


def may_be_split(root: Path) -> bool:
    """Whether a folder is in one piece and may be trained on, unlike `val/` alone."""
    (first, *others) = _split_folders(root)
    return not others and first not in HELD_OUT


def _split_folders(root: Path) -> list[str]:
    """The folders of a set's splits, `train` first; [""] where it comes in one piece."""
    names = [path.name for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    evaluated = [name for name in HELD_OUT if name in names][:1]
    if TRAIN in names:
        return [TRAIN, *evaluated]
    class_folders = [name for name in names if name not in HELD_OUT and not name.startswith(".")]
    return evaluated if evaluated and not class_folders else [""]


def _classes(root: Path, parts: Sequence[str], entries_of_parts: Sequence[Sequence[Entry]]) -> list[str]:
    labels = [{label for entry in entries for label in entry.labels} for entries in entries_of_parts]
    if unknown := sorted(labels[-1] - labels[0]):
        raise ValueError(f"{root / parts[1]} has classes that {root / parts[0]} lacks: {', '.join(unknown)}")
    return sorted(labels[0])


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
    """The class folder that an image lies in; None where it lies in none.

    **Raises:** ValueError for a name that is not UTF-8.
    """
    name, _, rest = file.removeprefix(f"{part}/" if part else "").partition("/")
    if not rest:
        return None
    if name.encode(errors="replace").decode() != name:
        raise ValueError(f"the name of the class folder {name!a} is not UTF-8: rename it")
    return name


def _image_set(root: Path, entries: Sequence[Entry], class_numbers: Mapping[str, int], multi_label: bool) -> ImageSet:
    if multi_label:
        labels = torch.zeros(len(entries), len(class_numbers), dtype=torch.bool)
        for row, entry in enumerate(entries):
            labels[row, [class_numbers[label] for label in entry.labels]] = True
    else:
        labels = torch.tensor([class_numbers[entry.labels[0]] for entry in entries], dtype=torch.int64)
    names = {name for entry in entries for name in entry.columns}
    files = [entry.file for entry in entries]
    columns = {name: [entry.columns.get(name, "") for entry in entries] for name in sorted(names)}
    return ImageSet(labels, partial(_read, root, files), files, columns)


def _read(root: Path, files: Sequence[str], index: int) -> Image.Image:
    return read_image(root / files[index])


def _hint_of(left_out: Sequence[Unreadable]) -> str:
    """A hint at the files that were left out, for an error that says too few are left."""
    if not left_out:
        return ""
    more = ", …" if len(left_out) > 1 else ""
    return f" ({len(left_out)} left out: {left_out[0].file!r}: {left_out[0].reason}{more})"
