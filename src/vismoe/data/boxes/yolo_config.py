"""Reads which classes and splits a YOLO data set has: a data.yaml, or a classes.txt."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..folders.layout import Split
from ..images import Unreadable
from .annotations import BoxFolder, read_lines

KEYS: Mapping[str, Split] = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}
"""Keys of data.yaml, and their splits."""
CLASSES = "classes.txt"


@dataclass(frozen=True)
class YoloConfig:
    """The classes and splits of a YOLO data set.

    - `names`: the name of each class by its number.
    - `files`: the files that were read.
    - `splits`: the images of each split, relative to the folder of the data set; empty if no file names splits.
    - `left_out`: images that are named but missing.
    - `notes`: notes to the user.
    """

    names: Mapping[int, str]
    files: Sequence[Path]
    splits: Mapping[Split | None, Sequence[str]] = field(default_factory=dict)
    left_out: Sequence[Unreadable] = ()
    notes: Sequence[str] = ()


def read_config(folder: BoxFolder, with_classes: bool) -> YoloConfig | None:
    """Reads the data.yaml (a YAML file of any name in the folder, with `names`) or the classes.txt of a folder; None if
    it has neither.

    **Arguments:**

    - `folder`: the folder.
    - `with_classes`: whether a classes.txt is read.

    **Raises:** ValueError if a file is broken, if there are several, or if they have different names.
    """
    documents = {path: document for path in folder.others if (document := _read_yaml(folder, path)) is not None}
    if len(documents) > 1:
        raise ValueError(f"{folder.root} has several descriptions of a YOLO data set, {_names(documents)}: keep one")
    lists = [path for path in folder.others if path.name.lower() == CLASSES and (documents or with_classes)]
    tables = {path: _read_classes(path) for path in lists}
    names: dict[Path, Mapping[int, str]] = {path: _names_in(path, document) for path, document in documents.items()}
    names |= tables
    if not names:
        return None
    first = next(iter(names))
    for path, others in tables.items():
        if others != names[first]:
            raise ValueError(f"{first} and {path} have different classes: remove one")
    for path, document in documents.items():
        splits, left_out, notes = _splits_in(folder, path, document)
        return YoloConfig(names[path], list(names), splits, left_out, notes)
    return YoloConfig(names[first], list(names))


def _names(paths: Mapping[Path, Any]) -> str:
    return ", ".join(path.name for path in paths)


def _read_yaml(folder: BoxFolder, path: Path) -> dict[str, Any] | None:
    """The content of a YAML file in the folder; None if it does not describe a YOLO data set."""
    if path.suffix.lower() not in (".yaml", ".yml") or path.parent != folder.root:
        return None
    content = path.read_bytes()
    if b"names" not in content:
        return None
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or "names" not in document or not {*KEYS, "nc", "path"} & document.keys():
        return None
    return document


def _names_in(path: Path, document: Mapping[str, Any]) -> dict[int, str]:
    """The names of the classes in a data.yaml."""
    if "kpt_shape" in document:
        raise ValueError(f"{path}: keypoints (kpt_shape) are not read: remove them, so that a line has five numbers")
    names = document["names"]
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(numbered, dict) or not numbered or not all(type(number) is int for number in numbered):
        raise ValueError(f"{path}: names: expected a list of names, or names by number, found {names!r:.60}")
    for number, name in numbered.items():
        if not isinstance(name, str | int | float) or isinstance(name, bool) or not str(name).strip():
            raise ValueError(f"{path}: names: {name!r:.60} is not a name: put the name of class {number} in quotes")
    count = document.get("nc", len(numbered))
    if count != len(numbered):
        raise ValueError(f"{path}: nc is {count!r:.60}, but there are {len(numbered)} names: correct one of them")
    return {number: str(name) for number, name in numbered.items()}


def _read_classes(path: Path) -> dict[int, str]:
    """The names of the classes in a classes.txt, one a line."""
    names = [line.strip() for line in read_lines(path)]
    while names and not names[-1]:
        names.pop()
    if not all(names):
        raise ValueError(f"{path}, line {names.index('') + 1}: expected the name of a class, found an empty line")
    return dict(enumerate(names))


def _splits_in(
    folder: BoxFolder, path: Path, document: Mapping[str, Any]
) -> tuple[dict[Split | None, list[str]], list[Unreadable], list[str]]:
    """The images of each split in a data.yaml, those that are missing, and notes."""
    splits: dict[Split | None, list[str]] = {}
    left_out: list[Unreadable] = []
    notes: list[str] = []
    for key, split in KEYS.items():
        entries = document.get(key)
        if not entries:
            continue
        files: dict[str, None] = {}
        for entry in entries if isinstance(entries, list) else [entries]:
            if not isinstance(entry, str):
                raise ValueError(f"{path}: {key}: expected a folder or a list of folders, found {entry!r:.60}")
            place = _resolved(folder, path, document, entry)
            if place is None and split == "test":
                notes.append(f"{path.name}: test: {entry!r} is not there, so there is no test split")
            elif place is None:
                raise ValueError(f"{path}: {key}: there is no {entry!r} in {folder.root}: correct the path")
            else:
                files |= dict.fromkeys(_images_of(folder, place, split, left_out))
        if files:
            splits[split] = list(files)
        elif split != "test":
            raise ValueError(f"{path}: {key}: there are no images in {entries!r:.60}")
    return splits, left_out, notes


def _resolved(folder: BoxFolder, path: Path, document: Mapping[str, Any], entry: str) -> Path | None:
    """The folder or file that an entry of a data.yaml means; None if it is not in the folder of the data set.

    As in Ultralytics, entries are relative to `path`. If that is a place on another machine, they are relative to the
    data.yaml, and a "../" at the beginning, as Roboflow writes it, is left out.
    """
    base = document.get("path")
    bases = [path.parent / base] if isinstance(base, str) else []
    plain = entry.replace("\\", "/")
    ending = plain
    while ending.startswith("../"):
        ending = ending[3:]
    candidates = [*(each / plain for each in bases), path.parent / plain, path.parent / ending]
    # Links are not resolved: images are listed by the path through a link.
    root = os.path.abspath(folder.root)
    absolute = [Path(os.path.abspath(each)) for each in candidates]
    return next((each for each in absolute if each.is_relative_to(root) and os.path.exists(each)), None)


def _images_of(folder: BoxFolder, place: Path, split: Split, left_out: list[Unreadable]) -> list[str]:
    """The images in a folder, or in a text file with their paths."""
    relative = place.relative_to(os.path.abspath(folder.root)).as_posix()
    if place.is_dir():
        return [file for file in folder.images.files if relative == "." or file.startswith(f"{relative}/")]
    files = []
    for number, line in enumerate(read_lines(place), start=1):
        if name := line.strip():
            try:
                file = folder.images.named(name, relative, split)
            except ValueError as error:
                raise ValueError(f"{place}, line {number}: {error}") from error
            if file is None:
                left_out.append(Unreadable(name, f"named in {place.name}, but no such image exists"))
            else:
                files.append(file)
    return files
