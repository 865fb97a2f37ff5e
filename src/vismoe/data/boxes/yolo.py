"""Reads YOLO's text files: a file for each image, with a line `class x y width height` for each object; x and y are the
centre, and all four are fractions of the image's size. The format is described at
https://docs.ultralytics.com/datasets/detect."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from vismoe.files import counted

from ..folders.layout import Split
from ..images import Unreadable
from .annotations import AnnotatedImage, Annotations, BoxFolder, Found, Object, read_lines
from .matching import SPLIT_NAMES, by_split
from .yolo_config import CLASSES, YoloConfig, read_config

KIND = "YOLO text files"
FARTHEST = 0.5
"""How far outside the image a coordinate may be, as a fraction of its size. Farther away, it is not a fraction."""
IMAGES, LABELS = "images", "labels"
EXAMINED = 20
"""Number of text files that are examined for the format."""


def find_yolo(folder: BoxFolder) -> Found | None:
    """YOLO's text files in a folder; None if there are none.

    **Raises:** ValueError if the data.yaml or classes.txt is broken.
    """
    texts = {folder.relative(path): path for path in folder.others if path.suffix.lower() == ".txt"}
    labels = {file: path for file in folder.images.files if (path := texts.get(_label_file(file))) is not None}
    # Text files beside images may be anything, such as captions.
    example = next((path for path in list(labels.values())[:EXAMINED] if _is_label(path)), None)
    config = read_config(folder, with_classes=example is not None)
    if config is not None:
        source = f"{folder.listed(config.files[:1])}, {counted(len(labels), 'file')}"
        return Found(KIND, source, partial(_read, folder, config, labels, texts))
    if example is not None:
        return Found(KIND, folder.relative(example), partial(_refuse_without_names, folder, example))
    return None


def _label_file(file: str) -> str:
    """The text file of an image: in labels/ instead of the last images/ in its path, otherwise beside it."""
    path = PurePosixPath(file)
    folders = list(path.parent.parts)
    if IMAGES in folders:
        folders[len(folders) - 1 - folders[::-1].index(IMAGES)] = LABELS
    return PurePosixPath(*folders, f"{path.stem}.txt").as_posix()


def _is_label(path: Path) -> bool:
    """Whether a text file looks like YOLO's."""
    words = path.read_bytes()[:1000].split(b"\n")[0].split()
    return len(words) > 4 and words[0].isdigit()


def _refuse_without_names(folder: BoxFolder, path: Path) -> Annotations:
    raise ValueError(
        f"{folder.root} has YOLO text files such as {folder.relative(path)}, but the names of the classes are not "
        f"known: add a {CLASSES} with a name on each line, or a data.yaml with names"
    )


def _read(folder: BoxFolder, config: YoloConfig, labels: Mapping[str, Path], texts: Mapping[str, Path]) -> Annotations:
    notes, left_out = list(config.notes), list(config.left_out)
    splits = _splits(folder, config, notes)
    polygons: list[Path] = []
    images: dict[Split | None, list[AnnotatedImage]] = {}
    for split, files in splits.items():
        if not any(file in labels for file in files):
            expected = f"expected {_label_file(files[0])} for {files[0]}"
            if split == "test":
                notes.append(f"the test split is not used: it has no label files ({expected})")
                continue
            raise ValueError(f"{folder.root}: no image of the {SPLIT_NAMES[split]} has a label file: {expected}")
        images[split] = [
            AnnotatedImage(file, _objects(labels[file], config.names, polygons) if file in labels else ())
            for file in files
        ]
    if repeated := [name for name, number in Counter(config.names.values()).items() if number > 1]:
        notes.append(f"{config.files[0].name}: several classes have one name and are one class: {repeated[0]}")
    if polygons:
        notes.append(
            f"lines with polygons, such as in {folder.relative(polygons[0])}, are read as the boxes around them: "
            f"{len(polygons):,}"
        )
    read = set(labels.values())
    orphans = [path for name, path in texts.items() if LABELS in PurePosixPath(name).parts and path not in read]
    orphans = [path for path in orphans if path.name.lower() != CLASSES]
    left_out += [Unreadable(folder.relative(path), "its image does not exist") for path in orphans]
    # Lists of images that data.yaml names are read too.
    lists = [path for path in texts.values() if path.parent == folder.root] if config.splits else []
    reason = f"in no split of {config.files[0].name}"
    order = [name for _, name in sorted(config.names.items())]
    files_read = [*config.files, *read, *orphans, *lists]
    return Annotations(images, files_read, reason, order, True, left_out, notes)


def _splits(folder: BoxFolder, config: YoloConfig, notes: list[str]) -> Mapping[Split | None, Sequence[str]]:
    """The images of each split."""
    if not config.splits:
        try:
            return by_split(folder.images.files)
        except ValueError as error:
            raise ValueError(f"{folder.root}: {error}") from error
    name = config.files[0].name
    splits = dict(config.splits)
    if "test" in splits and set(splits["test"]) == set(splits.get("validation", ())):
        del splits["test"]
        notes.append(f"{name}: val and test are the same images, so there is no test split")
    if "train" in splits and set(splits["train"]) == set(splits.get("validation", ())):
        del splits["validation"]
        notes.append(f"{name}: train and val are the same images, so there is no validation split")
    split_of_file: dict[str, Split | None] = {}
    for split, files in splits.items():
        for file in files:
            if file in split_of_file:
                raise ValueError(
                    f"{folder.root}: {name} has {file} in the {SPLIT_NAMES[split_of_file[file]]} and in the "
                    f"{SPLIT_NAMES[split]}: keep one"
                )
            split_of_file[file] = split
    return splits


def _objects(path: Path, names: Mapping[int, str], polygons: list[Path]) -> list[Object]:
    """The objects in a text file, in fractions; adds the file to `polygons` for each polygon."""
    objects = []
    for number, line in enumerate(read_lines(path), start=1):
        if words := line.split():
            try:
                objects.append(_object(words, names))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            if len(words) > 5:
                polygons.append(path)
    return objects


def _object(words: Sequence[str], names: Mapping[int, str]) -> Object:
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise ValueError(
            f"expected 5 numbers, class x y width height, or a class and the points of a polygon; found {len(words)}"
        )
    try:
        number, *values = map(float, words)
    except ValueError:
        raise ValueError(f"expected numbers, found {' '.join(words[:6])!r}") from None
    if not all(map(math.isfinite, (number, *values))):
        raise ValueError(f"expected finite numbers, found {' '.join(words[:6])!r}")
    if number not in names:
        raise ValueError(f"the class {words[0]} is unknown: the classes are {min(names)} to {max(names)}")
    if len(values) == 4:
        x, y, width, height = values
        edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        edges = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    if min(edges) < -FARTHEST or max(edges) > 1 + FARTHEST:
        raise ValueError(
            f"the box {' '.join(words[1:5])} is far outside the image: expected fractions of the image's size, 0 to 1"
        )
    return Object(names[int(number)], *edges)
