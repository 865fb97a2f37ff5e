"""A person's folder of images: class folders, or a `metadata.csv` that names the labels; split or in one piece."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from zlib import crc32

import torch
from PIL import Image

from ..batches import mix_seeds
from ..image_set import Data, ImageSet
from ..images import IMAGE_SUFFIXES, Unreadable, list_images, read_image
from .metadata import METADATA, Row, read_tables

TRAIN, HELD_OUT = "train", ("val", "validation", "valid", "test")
"""Folders that are parts of a set; of several held-out ones the first in this order is used."""


@dataclass(frozen=True)
class Sample:
    """An image file below the set's folder, the names of what it shows, the other columns of its row of metadata."""

    file: str
    labels: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)


def open_folder(root: Path, split_seed: int | None, held_out: float) -> Data:
    """A folder as a set. Its own split is kept where it has one: `train/` beside `val/` (or validation, valid, test).
    Otherwise, with a `split_seed`, that share of each class's images is held out; without, all is for evaluation.

    **Raises:** ValueError for a folder without labelled images, a class without any, a held-out class that is not in
    the training part, or a `metadata.csv` that cannot be followed.
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
        samples, rest = _by_class_folder(root, part, own) if rows is None else _by_metadata(part, own, rows)
        if not multi_label:
            rest += [Unreadable(sample.file, f"has no label in {METADATA}") for sample in samples if not sample.labels]
            samples = [sample for sample in samples if sample.labels]
        left_out += rest
        if not any(sample.labels for sample in samples):
            raise ValueError(f"{root / part} has no labelled images{_some(left_out)}")
        found.append(samples)
    classes = _classes(root, parts, found)
    if len(found) == 1 and split_seed is not None and parts[0] not in HELD_OUT:
        try:
            found = list(split(found[0], split_seed, held_out))
        except ValueError as error:
            raise ValueError(f"{root}: {error}") from error
    number = {name: index for index, name in enumerate(classes)}
    *train, val = (_image_set(root, samples, number, multi_label) for samples in found)
    return Data(str(root), classes, train[0] if train else None, val, left_out=tuple(left_out))


def _parts(root: Path) -> list[str]:
    """The folders of a set's parts, the training part first; [""] where it comes in one piece."""
    names = [path.name for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    held_out = [name for name in HELD_OUT if name in names][:1]
    if TRAIN in names:
        return [TRAIN, *held_out]
    others = [name for name in names if name not in HELD_OUT and not name.startswith(".")]
    return held_out if held_out and not others else [""]


def _classes(root: Path, parts: Sequence[str], found: Sequence[Sequence[Sample]]) -> list[str]:
    seen = [{label for sample in samples for label in sample.labels} for samples in found]
    if unknown := sorted(seen[-1] - seen[0]):
        raise ValueError(f"{root / parts[1]} has classes that {root / parts[0]} lacks: {', '.join(unknown)}")
    return sorted(seen[0])


def _by_metadata(part: str, files: Iterable[str], rows: Mapping[str, Row]) -> tuple[list[Sample], list[Unreadable]]:
    samples, left_out = [], []
    for file in files:
        if file not in rows:
            left_out.append(Unreadable(file, f"not named in {METADATA}"))
        elif (labels := rows[file].labels) is not None:
            samples.append(Sample(file, labels, rows[file].columns))
        elif (name := _class_folder(part, file)) is not None:
            samples.append(Sample(file, (name,), rows[file].columns))
        else:
            left_out.append(Unreadable(file, f"lies in no class folder, and {METADATA} has no column label"))
    return samples, left_out


def _by_class_folder(root: Path, part: str, files: Iterable[str]) -> tuple[list[Sample], list[Unreadable]]:
    folder = root / part
    classes = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and not p.is_symlink() and p.name[0] != "."]
    if not classes:
        raise ValueError(f"{folder} has no class folders: expected a folder of images for each class, or {METADATA}")
    samples, left_out = [], []
    for file in files:
        name = _class_folder(part, file)
        if name is None:
            left_out.append(Unreadable(file, "lies in no class folder"))
        else:
            samples.append(Sample(file, (name,)))
    if empty := sorted(set(classes) - {sample.labels[0] for sample in samples}):
        accepted = ", ".join(IMAGE_SUFFIXES)
        raise ValueError(f"{folder}: no images in the class folders {', '.join(empty)}; accepted are {accepted}")
    return samples, left_out


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


def split(samples: Sequence[Sample], seed: int, held_out: float) -> tuple[list[Sample], list[Sample]]:
    """Holds out a share of the samples of each class (of each combination of labels), drawn by the seed: of one that
    has two or more at least one and not all; of the combinations that occur once that share of all of them. No label is
    left without an image to train on.

    **Raises:** ValueError where nothing can be held out.
    """
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, sample in enumerate(samples):
        alike[tuple(sorted(sample.labels))].append(number)
    single = [numbers[0] for labels, numbers in sorted(alike.items()) if len(numbers) == 1]
    groups = [numbers for _, numbers in sorted(alike.items()) if len(numbers) > 1] + [single]
    left = Counter(label for sample in samples for label in sample.labels)
    out: set[int] = set()
    for numbers in groups:
        if numbers:
            # A seed of each group's own: a new class leaves the split of the others as it was.
            own = crc32("\0".join(sorted(samples[numbers[0]].labels)).encode())
            generator = torch.Generator().manual_seed(mix_seeds(seed, own))
            wanted = min(max(1, round(held_out * len(numbers))), len(numbers) - 1)
            for place in torch.randperm(len(numbers), generator=generator).tolist():
                labels = samples[numbers[place]].labels
                if wanted and all(left[label] > 1 for label in labels):
                    left.subtract(labels)
                    out.add(numbers[place])
                    wanted -= 1
    if not out:
        raise ValueError("no class has two images, so that none can be held out: expected at least two of a class")
    train = [sample for number, sample in enumerate(samples) if number not in out]
    return train, [samples[number] for number in sorted(out)]


def _image_set(root: Path, samples: Sequence[Sample], number: Mapping[str, int], multi_label: bool) -> ImageSet:
    if multi_label:
        labels = torch.zeros(len(samples), len(number), dtype=torch.bool)
        for row, sample in enumerate(samples):
            labels[row, [number[label] for label in sample.labels]] = True
    else:
        labels = torch.tensor([number[sample.labels[0]] for sample in samples], dtype=torch.int64)
    names = {name for sample in samples for name in sample.columns}
    files = [sample.file for sample in samples]
    columns = {name: [sample.columns.get(name, "") for sample in samples] for name in sorted(names)}
    return ImageSet(labels, partial(_read, root, files), files, columns)


def _read(root: Path, files: Sequence[str], index: int) -> Image.Image:
    return read_image(root / files[index])


def _some(left_out: Sequence[Unreadable]) -> str:
    """A hint at what was left out, for an error of too little that is left."""
    if not left_out:
        return ""
    more = ", …" if len(left_out) > 1 else ""
    return f" ({len(left_out)} left out: {left_out[0].file!r}: {left_out[0].reason}{more})"
