"""Reads a `metadata.jsonl` of Hugging Face's datasets with `objects`: a line for each image, its boxes as
[x, y, width, height] in pixels. The format is described at
https://huggingface.co/docs/datasets/image_dataset#object-detection."""

import json
import posixpath
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vismoe.files import counted

from ..folders.metadata import FILE, METADATA_LINES
from ..images import Unreadable
from .annotations import AnnotatedImage, Annotations, BoxFolder, Found, Object, read_lines
from .json_values import four_numbers, shown
from .matching import by_split

KIND = "metadata.jsonl with objects"
OBJECTS, BOXES = "objects", "bbox"
NAMES = ("category", "categories", "label", "labels")
IGNORED = ("iscrowd", "is_crowd", "difficult")


def find_metadata_objects(folder: BoxFolder) -> Found | None:
    """The metadata.jsonl files with objects in a folder; None if there are none.

    **Raises:** ValueError if a line of such a file is not JSON.
    """
    paths = [path for path in folder.others if path.name == METADATA_LINES]
    if not any(b'"objects"' in path.read_bytes() for path in paths):
        return None
    tables = {path: _lines(path) for path in paths}
    if not any(_has_boxes(entry.get(OBJECTS)) for table in tables.values() for entry in table.values()):
        return None
    return Found(KIND, folder.listed(paths), partial(_read, folder, tables))


def _has_boxes(objects: Any) -> bool:
    first = objects[0] if isinstance(objects, list) and objects else objects
    return isinstance(first, dict) and BOXES in first


def _lines(path: Path) -> dict[int, dict[str, Any]]:
    """The objects in a file of JSON lines, by the numbers of their lines."""
    entries = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get(FILE), str):
            raise ValueError(
                f'{path}, line {number}: expected an object such as {{"{FILE}": "1.png", "{OBJECTS}": {{"{BOXES}": '
                '[[0, 0, 20, 10]], "category": ["cat"]}}'
            )
        entries[number] = entry
    return entries


def _read(folder: BoxFolder, tables: Mapping[Path, Mapping[int, Mapping[str, Any]]]) -> Annotations:
    images: dict[str, AnnotatedImage] = {}
    left_out: list[Unreadable] = []
    numbered: set[str] = set()
    files = set(folder.images.files)
    for path, table in tables.items():
        beside = posixpath.dirname(folder.relative(path))
        for number, entry in table.items():
            place = f"{path}, line {number}"
            file = posixpath.normpath(posixpath.join(beside, entry[FILE].strip()))
            if OBJECTS not in entry:
                raise ValueError(
                    f'{place} has no {OBJECTS}: write "{OBJECTS}": {{"{BOXES}": [], "category": []}} for an image '
                    "without objects"
                )
            objects = _objects(place, entry[OBJECTS], numbered)
            if file not in files:
                left_out.append(Unreadable(file, f"named in {path.name}, but no such image exists"))
            elif file in images:
                raise ValueError(f"{place}: {file!r} is in another line already: remove one")
            else:
                others = {key: value for key, value in entry.items() if key not in (FILE, OBJECTS)}
                columns = {key: str(value) for key, value in others.items() if isinstance(value, str | int | float)}
                images[file] = AnnotatedImage(file, objects, columns=columns)
    if not images:
        raise ValueError(f"{folder.root}: none of the images that {folder.listed(list(tables))} names is there")
    try:
        splits = {split: [images[file] for file in names] for split, names in by_split(images).items()}
    except ValueError as error:
        raise ValueError(f"{folder.root}: {error}") from error
    notes = ["categories are numbers, so the names of the classes are numbers"] if numbered else []
    order = sorted(numbered, key=int)
    return Annotations(splits, list(tables), f"not named in {METADATA_LINES}", order, False, left_out, notes)


def _objects(place: str, value: Any, numbered: set[str]) -> list[Object]:
    """The objects of a line: a list for each key, or a list of objects. Adds names that are numbers to `numbered`."""
    if value is None:
        return []
    if isinstance(value, list):
        value = _as_columns(place, value)
    if not isinstance(value, dict) or not isinstance(value.get(BOXES), list):
        raise ValueError(f'{place}: expected {OBJECTS} such as {{"{BOXES}": [], "category": []}}, found {shown(value)}')
    boxes = value[BOXES]
    key = next((key for key in NAMES if key in value), None)
    if key is None:
        raise ValueError(f"{place}: {OBJECTS} has no classes: expected a list under one of {', '.join(NAMES)}")
    names = _list_of(place, key, value[key], len(boxes))
    ignored_key = next((key for key in IGNORED if key in value), None)
    ignored = _list_of(place, ignored_key, value[ignored_key], len(boxes)) if ignored_key else [0] * len(boxes)
    objects = []
    for number, (box, name, each) in enumerate(zip(boxes, names, ignored, strict=True)):
        left, top, width, height = four_numbers(f"{place}: {OBJECTS}.{BOXES}[{number}]", box)
        if isinstance(name, bool) or not isinstance(name, int | str) or not str(name).strip():
            raise ValueError(f"{place}: {OBJECTS}.{key}[{number}]: expected a name or a number, found {shown(name)}")
        if each not in (0, 1):
            raise ValueError(f"{place}: {OBJECTS}.{ignored_key}[{number}]: expected 0 or 1, found {shown(each)}")
        if isinstance(name, int):
            numbered.add(str(name))
        objects.append(Object(str(name), left, top, left + width, top + height, bool(each)))
    return objects


def _as_columns(place: str, rows: Sequence[Any]) -> dict[str, list[Any]]:
    """A list of objects as lists by key."""
    keys = list(rows[0]) if rows and isinstance(rows[0], dict) else [BOXES, NAMES[0]]
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or set(row) != set(keys):
            raise ValueError(f"{place}: {OBJECTS}[{number}]: expected the keys {', '.join(keys)}, found {shown(row)}")
    return {key: [row[key] for row in rows] for key in keys}


def _list_of(place: str, key: str, values: Any, length: int) -> list[Any]:
    if not isinstance(values, list) or len(values) != length:
        found = counted(len(values), "value") if isinstance(values, list) else shown(values)
        wanted = counted(length, "value")
        raise ValueError(f"{place}: {OBJECTS}.{key}: expected {wanted}, one for each box, found {found}")
    return values
