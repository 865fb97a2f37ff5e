"""Reads COCO's JSON: one file with images, annotations and categories, or one for each split.

The format is described at https://cocodataset.org/#format-data."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vismoe.files import readable

from ..folders.layout import Split
from ..images import Unreadable
from .annotations import AnnotatedImage, Annotations, BoxFolder, Found, Object
from .json_values import four_numbers, is_length, shown
from .matching import SPLIT_NAMES, by_split, split_of_path, split_of_stem

KIND = "COCO JSON"
OTHER_TASKS = ("captions", "image_info", "panoptic", "person_keypoints", "stuff")
"""Beginnings of names of COCO's own files of other tasks, which lie beside its instances_*.json."""
IMAGE_KEYS = ("id", "file_name", "width", "height")


def find_coco(folder: BoxFolder) -> Found | None:
    """COCO's JSON files of a folder; None if there are none.

    **Raises:** ValueError if such a file is not JSON.
    """
    documents = {path: document for path in folder.others if (document := _read_document(path)) is not None}
    if any(path.stem.startswith("instances") for path in documents):
        documents = {path: each for path, each in documents.items() if not path.stem.startswith(OTHER_TASKS)}
    if not documents:
        return None
    return Found(KIND, folder.listed(list(documents)), partial(_read, folder, documents))


def _read_document(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None if it is not COCO's."""
    if path.suffix.lower() != ".json":
        return None
    content = path.read_bytes()
    if b'"annotations"' not in content and not (b'"images"' in content and b'"file_name"' in content):
        return None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}; correct it, or export it again") from error
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        return None
    return document


def _read(folder: BoxFolder, documents: Mapping[Path, dict[str, Any]]) -> Annotations:
    splits: dict[Split | None, list[AnnotatedImage]] = {}
    order: list[str] = []
    left_out: list[Unreadable] = []
    notes: list[str] = []
    paths = _by_split(folder, list(documents))
    for split, path in paths.items():
        document = documents[path]
        names = _categories(path, document)
        order += names.values()
        if repeated := sorted(name for name, number in Counter(names.values()).items() if number > 1):
            notes.append(f"{folder.relative(path)}: several categories have one name and are one class: {repeated[0]}")
        splits[split] = _images(folder, path, split, document, names, left_out)
    if list(splits) == [None]:  # one file may name images in the folders of splits
        images = {image.file: image for image in splits[None]}
        try:
            splits = {split: [images[file] for file in files] for split, files in by_split(images).items()}
        except ValueError as error:
            raise ValueError(f"{folder.root}: {error}") from error
    return Annotations(splits, list(documents), "not named in the COCO JSON", order, False, left_out, notes)


def _by_split(folder: BoxFolder, paths: Sequence[Path]) -> dict[Split | None, Path]:
    """The file of each split."""
    splits: dict[Split | None, Path] = {}
    for path in paths:
        split = split_of_path(folder.relative(path)) or split_of_stem(path.stem)
        if split in splits:
            meaning = f"of the {SPLIT_NAMES[split]}" if split else "without the name of a split"
            raise ValueError(
                f"{folder.root} has two COCO files {meaning}, {folder.listed([splits[split], path])}: remove one, or "
                "name them train.json, val.json and test.json"
            )
        splits[split] = path
    if None in splits and len(splits) > 1:
        other = next(path for split, path in splits.items() if split is not None)
        raise ValueError(
            f"{folder.root} has COCO files with and without the name of a split, {folder.listed([other, splits[None]])}"
            ": remove one"
        )
    return splits


def _entries(path: Path, document: Mapping[str, Any], key: str, needed: Sequence[str]) -> list[dict[str, Any]]:
    """The list of objects under a key."""
    entries = document.get(key)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list {key!r}, found {shown(entries)}: add it")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {key}[{number}]: expected an object, found {shown(entry)}: remove it")
        if missing := [name for name in needed if name not in entry]:
            raise ValueError(f"{path}: {key}[{number}] has no {missing[0]!r}: add it, or remove the entry")
    return entries


def _categories(path: Path, document: Mapping[str, Any]) -> dict[Any, str]:
    """The name of each category by its id."""
    names: dict[Any, str] = {}
    for number, entry in enumerate(_entries(path, document, "categories", ("id", "name"))):
        name = entry["name"]
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{path}: categories[{number}].name: expected a name, found {shown(name)}: name the class")
        _add_once(names, path, f"categories[{number}].id", entry["id"], name)
    return names


def _images(
    folder: BoxFolder,
    path: Path,
    split: Split | None,
    document: Mapping[str, Any],
    names: Mapping[Any, str],
    left_out: list[Unreadable],
) -> list[AnnotatedImage]:
    """The images of a file; adds those that are missing to `left_out`."""
    entries = _entries(path, document, "images", ("id", "file_name"))
    objects: dict[Any, list[Object]] = {}
    for number, entry in enumerate(entries):
        _add_once(objects, path, f"images[{number}].id", entry["id"], [])
    for number, entry in enumerate(_entries(path, document, "annotations", ("image_id", "category_id", "bbox"))):
        place = f"annotations[{number}]"
        of_image = _looked_up(objects, path, f"{place}.image_id", entry["image_id"], "images")
        name = _looked_up(names, path, f"{place}.category_id", entry["category_id"], "categories")
        of_image.append(_object(path, place, name, entry))
    images: dict[str, AnnotatedImage] = {}
    for number, entry in enumerate(entries):
        name = entry["file_name"]
        if not isinstance(name, str):
            raise ValueError(
                f"{path}: images[{number}].file_name: expected a path, found {shown(name)}: write the path"
            )
        try:
            file = folder.images.named(name, folder.relative(path), split)
        except ValueError as error:
            raise ValueError(f"{path}: images[{number}].file_name: {error}") from error
        if file is None:
            left_out.append(Unreadable(readable(name), f"named in {path.name}, but no such image exists"))
        elif file in images:
            raise ValueError(f"{path}: images[{number}].file_name: {name!r} is in the list twice: remove one")
        else:
            columns = {key: str(value) for key, value in entry.items() if _is_column(key, value)}
            size = _size(path, f"images[{number}]", entry)
            images[file] = AnnotatedImage(file, objects[entry["id"]], size, columns)
    if entries and not images:
        raise ValueError(
            f"{path}: none of the images in the list, such as {entries[0]['file_name']!r}, is in {folder.root}: put "
            "them there"
        )
    return list(images.values())


def _is_column(key: str, value: Any) -> bool:
    return key not in IMAGE_KEYS and isinstance(value, str | int | float)


def _object(path: Path, place: str, name: str, entry: Mapping[str, Any]) -> Object:
    left, top, width, height = four_numbers(f"{path}: {place}.bbox", entry["bbox"])
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise ValueError(f"{path}: {place}.iscrowd: expected 0 or 1, found {shown(crowd)}: use 0 unless it is a crowd")
    return Object(name, left, top, left + width, top + height, bool(crowd))


def _size(path: Path, place: str, entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """The size of an image; None if it is not given."""
    width, height = entry.get("width"), entry.get("height")
    if width is None and height is None:
        return None
    if is_length(width) and is_length(height):
        return int(width), int(height)
    raise ValueError(
        f"{path}: {place}: expected width and height in pixels, found {shown(width)} and {shown(height)}: correct "
        "them, or remove both"
    )


def _add_once(values: dict[Any, Any], path: Path, place: str, key: Any, value: Any) -> None:
    """Adds a value under an id that must be new."""
    if not isinstance(key, int | str):
        raise ValueError(f"{path}: {place}: expected a number, found {shown(key)}: give each entry a number")
    if key in values:
        raise ValueError(f"{path}: {place}: {shown(key)} is in the list twice: give each entry its own id")
    values[key] = value


def _looked_up(values: Mapping[Any, Any], path: Path, place: str, key: Any, among: str) -> Any:
    if not isinstance(key, int | str) or key not in values:
        raise ValueError(f"{path}: {place}: {shown(key)} is not an id in {among!r}: correct it, or add the entry")
    return values[key]
