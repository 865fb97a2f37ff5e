"""Opens a folder of images. Labels come from class folders or from a table; the folder may have splits."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from vismoe.files import readable

from ..image_set import Data, ImageSet
from ..images import IMAGE_SUFFIXES, Listing, Unreadable, read_image
from .layout import Layout, find_layout, split_of, subfolders
from .metadata import METADATA, Row, find_table, read_tables

SPLIT_COLUMNS = ("split", "splits", "set", "subset", "fold", "partition")
"""Names of columns that may name the split of an image, in lower case."""
SHOWN = 3
"""Number of examples in a note."""


@dataclass(frozen=True)
class Entry:
    """An image file with its labels.

    - `file`: its path relative to the folder of the data set, as readable text.
    - `labels`: its labels.
    - `columns`: values of the other columns of the metadata.
    """

    file: str
    labels: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)


def open_folder(root: Path, listing: Listing) -> tuple[Data, bool]:
    """Opens a folder as a data set.

    **Arguments:**

    - `root`: the folder.
    - `listing`: its content.

    **Returns:** the data set, and whether it can be split. If the folder has splits (see `find_layout`), they are kept.
    Otherwise all images are in `val`, `train` is None, and the data set can be split. A folder that has only `val/` or
    `test/` cannot.

    **Raises:** ValueError if the folder has no labelled images, a class folder has no images or is a link that is not
    followed, the validation or test split has classes that the training split lacks, a table cannot be read, or it is
    not clear which folders are splits and which are classes.
    """
    paths = {readable(path.relative_to(root).as_posix()): path for path in listing.images}
    layout = find_layout(root, list(paths), find_table(root) is not None)
    layout = _without_unlabelled_test(root, layout)
    tables, faults = read_tables(root, ["", *layout.folders], paths, [entry.file for entry in listing.left_out])
    left_out = [entry for entry in (*listing.left_out, *faults) if not _is_of_unused_split(entry.file, layout)]
    multi_label = any(row.several for rows in tables.values() for row in rows.values())
    entries_of_splits, by_folder = [], []
    for folder in layout.folders:
        files = [file for file in paths if not folder or file.startswith(f"{folder}/")]
        entries, unlabelled = _labelled(root, folder, files, tables, listing.left_out)
        if not multi_label:
            unlabelled += [
                Unreadable(entry.file, f"has no label in {_table_name(root, folder)}")
                for entry in entries
                if not entry.labels
            ]
            entries = [entry for entry in entries if entry.labels]
        left_out += unlabelled
        if not any(entry.labels for entry in entries):
            raise ValueError(f"{root / folder} has no labelled images{_hint_of(left_out)}")
        entries_of_splits.append(entries)
        by_folder += [
            _inside(folder, entry) for entry in entries if entry.labels == (_class_folder(folder, entry.file),)
        ]
    classes = _classes(root, layout.folders, entries_of_splits)
    class_numbers = {name: index for index, name in enumerate(classes)}
    splits = [_image_set(paths, entries, class_numbers, multi_label) for entries in entries_of_splits]
    train, val, test = splits[0], splits[min(1, len(splits) - 1)], splits[2] if len(splits) > 2 else None
    notes = (*layout.notes, *listing.notes, *_notes_of_tables(root, tables), *_notes_of_subfolders(by_folder))
    if len(splits) == 1:
        notes += _notes_of_columns(splits[0])
    data = Data(
        str(root), classes, train if len(splits) > 1 else None, val, left_out=tuple(left_out), test=test, notes=notes
    )
    return data, layout.train is not None and layout.validation is None


def _is_of_unused_split(file: str, layout: Layout) -> bool:
    """Whether the path of a file is in a split that is not used."""
    folder = file.partition("/")[0]
    return layout.train != "" and folder not in layout.folders and split_of(folder) is not None


def _without_unlabelled_test(root: Path, layout: Layout) -> Layout:
    """The layout without a test split that has no labels: neither class folders nor a table, as in competitions."""
    test = layout.test
    if test is None or find_table(root) or find_table(root / test) or subfolders(root / test):
        return layout
    note = f"{test}/ is not used: its labels are unknown, because it has no class folders and no table"
    return replace(layout, test=None, notes=(*layout.notes, note))


def _labelled(
    root: Path,
    folder: str,
    files: Sequence[str],
    tables: Mapping[str, Mapping[str, Row]],
    left_out: Sequence[Unreadable],
) -> tuple[list[Entry], list[Unreadable]]:
    """The images of a split with labels, and the files without. Labels come from the table; if there is none, or it has
    no column for labels, from the class folders."""
    rows = {**tables.get("", {}), **tables[folder]} if folder in tables else tables.get("")
    if rows is None or any(row.labels is None for row in rows.values()):
        _check_links(root, folder, left_out)
    if rows is None:
        return _by_class_folder(root, folder, files)
    return _by_metadata(folder, files, rows, _table_name(root, folder))


def _check_links(root: Path, folder: str, left_out: Sequence[Unreadable]) -> None:
    """Raises ValueError for a class folder that is a link that is not followed: its class would be lost."""
    for entry in left_out:
        path = root / entry.file
        if path.parent == root / folder and path.is_symlink() and path.suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(
                f"{path} is {entry.reason}, so its class would be lost: replace the link by the images, or by a link "
                f"to a folder inside {root}"
            )


def _notes_of_tables(root: Path, tables: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """Notes to the user about images with several labels that may be a mistake: cells that were divided, because a name
    with a comma may be one label; and images in several rows."""
    notes = []
    for folder, rows in tables.items():
        divided = [row.divided for row in rows.values() if row.divided]
        if divided:
            notes.append(
                f"{_table_name(root, folder)}: {len(divided)} of {len(rows)} cells have several labels, such as "
                f"{divided[0]!r}, so an image may show several classes; if this is one label, write it as a JSON list, "
                f"{json.dumps([divided[0]], ensure_ascii=False)}"
            )
        repeated = [(file, row.labels or ()) for file, row in rows.items() if row.repeated]
        if repeated:
            file, labels = repeated[0]
            images = "1 image is" if len(repeated) == 1 else f"{len(repeated)} images are"
            notes.append(
                f"{_table_name(root, folder)}: {images} in several rows with different labels, such as {file} "
                f"({', '.join(labels)}), so an image may show several classes; if this is a mistake, remove a row"
            )
    return notes


def _inside(split: str, entry: Entry) -> tuple[str, str]:
    """The class folder of an image, and its subfolder in it; "" if it is in none."""
    name, _, rest = entry.file.removeprefix(f"{split}/" if split else "").partition("/")
    return name, rest.partition("/")[0] if "/" in rest else ""


def _notes_of_subfolders(inside: Iterable[tuple[str, str]]) -> list[str]:
    """A note to the user about class folders with several subfolders: their names may be meant as classes."""
    subfolders_of: dict[str, set[str]] = defaultdict(set)
    for name, subfolder in inside:
        if subfolder:
            subfolders_of[name].add(subfolder)
    divided = sorted(name for name, names in subfolders_of.items() if len(names) > 1)
    if not divided:
        return []
    first = divided[0]
    names = ", ".join(f"{name}/" for name in sorted(subfolders_of[first])[:SHOWN])
    more = ", …" if len(subfolders_of[first]) > SHOWN else ""
    others = f", and so have {len(divided) - 1} more class folders" if len(divided) > 1 else ""
    return [f"{first}/ has subfolders ({names}{more}){others}: their images have the class of the class folder"]


def _notes_of_columns(images: ImageSet) -> tuple[str, ...]:
    """Notes to the user about columns that name splits: they are not used."""
    notes = []
    for column, cells in images.columns.items():
        values = sorted({cell for cell in cells if cell})
        if column.lower() in SPLIT_COLUMNS and len({split_of(value) for value in values} - {None}) > 1:
            shown = ", ".join(values[:SHOWN])
            notes.append(
                f"the column {column!r} ({shown}) is not used: to keep these splits, move the images "
                "into folders with these names"
            )
    return tuple(notes)


def _table_name(root: Path, folder: str) -> str:
    """The name of the table with the labels of a split."""
    table = find_table(root / folder) or find_table(root)
    return METADATA if table is None else table.name


def _classes(root: Path, folders: Sequence[str], entries_of_splits: Sequence[Sequence[Entry]]) -> list[str]:
    labels = [{label for entry in entries for label in entry.labels} for entries in entries_of_splits]
    for folder, split_labels in zip(folders[1:], labels[1:], strict=True):
        if unknown := sorted(split_labels - labels[0]):
            raise ValueError(f"{root / folder} has classes that {root / folders[0]} lacks: {', '.join(unknown)}")
    return sorted(labels[0])


def _by_metadata(
    split: str, files: Iterable[str], rows: Mapping[str, Row], table: str
) -> tuple[list[Entry], list[Unreadable]]:
    entries, left_out = [], []
    for file in files:
        if file not in rows:
            left_out.append(Unreadable(file, f"not named in {table}"))
        elif (labels := rows[file].labels) is not None:
            entries.append(Entry(file, labels, rows[file].columns))
        elif (name := _class_folder(split, file)) is not None:
            entries.append(Entry(file, (name,), rows[file].columns))
        else:
            left_out.append(Unreadable(file, f"not in a class folder, and {table} has no column label"))
    return entries, left_out


def _by_class_folder(root: Path, split: str, files: Iterable[str]) -> tuple[list[Entry], list[Unreadable]]:
    folder = root / split
    classes = subfolders(folder)
    if not classes:
        raise ValueError(f"{folder} has no class folders: expected a folder of images for each class, or {METADATA}")
    for name in classes:
        if readable(name) != name:
            raise ValueError(f"the name of the class folder {name!a} is not UTF-8: rename it")
    entries, left_out = [], []
    for file in files:
        label = _class_folder(split, file)
        if label is None:
            left_out.append(Unreadable(file, "not in a class folder"))
        else:
            entries.append(Entry(file, (label,)))
    if empty := sorted(set(classes) - {entry.labels[0] for entry in entries}):
        accepted = ", ".join(IMAGE_SUFFIXES)
        raise ValueError(f"{folder}: no images in the class folders {', '.join(empty)}; accepted are {accepted}")
    return entries, left_out


def _class_folder(split: str, file: str) -> str | None:
    """The class folder of an image; None if it is not in one."""
    name, _, rest = file.removeprefix(f"{split}/" if split else "").partition("/")
    return name if rest else None


def _image_set(
    paths: Mapping[str, Path], entries: Sequence[Entry], class_numbers: Mapping[str, int], multi_label: bool
) -> ImageSet:
    if multi_label:
        labels = torch.zeros(len(entries), len(class_numbers), dtype=torch.bool)
        for row, entry in enumerate(entries):
            labels[row, [class_numbers[label] for label in entry.labels]] = True
    else:
        labels = torch.tensor([class_numbers[entry.labels[0]] for entry in entries], dtype=torch.int64)
    names = {name for entry in entries for name in entry.columns}
    files = [entry.file for entry in entries]
    columns = {name: [entry.columns.get(name, "") for entry in entries] for name in sorted(names)}
    return ImageSet(labels, partial(_read, [paths[file] for file in files]), files, columns)


def _read(paths: Sequence[Path], index: int) -> Image.Image:
    return read_image(paths[index])


def _hint_of(left_out: Sequence[Unreadable]) -> str:
    """The number of files that are left out, with an example, for an error message."""
    if not left_out:
        return ""
    more = ", …" if len(left_out) > 1 else ""
    return f" ({len(left_out)} left out: {left_out[0].file!r}: {left_out[0].reason}{more})"
