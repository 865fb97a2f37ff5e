"""A person's folder of images: class folders, or a `metadata.csv` that names the labels; split or in one piece."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import torch

from .image_set import Data, ImageSet
from .images import IMAGE_SUFFIXES, Unreadable, list_images, read_image
from .metadata import METADATA, Row, read_metadata
from .seeds import mix_seeds

TRAIN, HELD_OUT = "train", ("val", "validation", "valid", "test")
"""Folders that are parts of a set; of several held-out ones the first in this order is used."""


@dataclass(frozen=True)
class Sample:
    """An image file, the names of what it shows, and the other columns of its row of metadata."""

    path: Path
    labels: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Part:
    """The samples of a set or of one part of it, and the files that are left out."""

    samples: list[Sample]
    left_out: list[Unreadable]
    multi_label: bool = False


def open_folder(root: Path, split_seed: int | None, held_out: float) -> Data:
    """A folder as a set. Its own split is kept where it has one: `train/` beside `val/` (or validation, valid, test).
    Otherwise, with a `split_seed`, that share of each class's images is held out; without, all is for evaluation.

    **Raises:** ValueError for a folder without labelled images, a class without any, a held-out class that is not in
    the training part, or a `metadata.csv` that cannot be followed.
    """
    parts = _parts(root)
    found = [_read_part(root, folder) for folder in parts.values()]
    multi_label = any(part.multi_label for part in found)
    left_out = [entry for part in found for entry in part.left_out]
    if not multi_label:
        for part in found:
            unlabelled = [sample for sample in part.samples if not sample.labels]
            left_out += [Unreadable(_name(root, sample), f"has no label in {METADATA}") for sample in unlabelled]
            part.samples = [sample for sample in part.samples if sample.labels]
    first = found[0].samples
    classes = sorted({label for sample in first for label in sample.labels})
    if not classes:
        raise ValueError(f"{root} has no labelled images{_some(left_out)}")
    if len(found) == 2:
        others = {label for sample in found[1].samples for label in sample.labels}
        if unknown := sorted(others - set(classes)):
            names = [str(root / part) for part in parts]
            raise ValueError(f"{names[1]} has classes that {names[0]} lacks: {', '.join(unknown)}")
        pieces = [first, found[1].samples]
    else:
        pieces = [first]
        if split_seed is not None and next(iter(parts)) not in HELD_OUT:
            pieces = list(split(first, split_seed, held_out))
    number = {name: index for index, name in enumerate(classes)}
    *train, val = (_image_set(root, piece, number, multi_label) for piece in pieces)
    return Data(str(root), classes, train[0] if train else None, val, left_out=tuple(left_out))


def _parts(root: Path) -> dict[str, Path]:
    """The folders of a set's parts by name, the training part first; the set itself where it comes in one piece."""
    names = [path.name for path in sorted(root.iterdir()) if path.is_dir() and not path.is_symlink()]
    held_out = [name for name in HELD_OUT if name in names][:1]
    others = [name for name in names if name not in (TRAIN, *HELD_OUT) and not name.startswith(".")]
    if TRAIN in names:
        return {name: root / name for name in (TRAIN, *held_out)}
    if held_out and not others:
        return {held_out[0]: root / held_out[0]}
    return {"": root}


def _read_part(root: Path, folder: Path) -> Part:
    """What lies in a folder, labelled by the metadata beside it or above it, else by class folders."""
    images, left_out = list_images(folder)
    if folder != root:
        left_out = [Unreadable(f"{folder.name}/{entry.file}", entry.reason) for entry in left_out]
    for place in dict.fromkeys((folder, root)):
        if (place / METADATA).is_file():
            rows = {
                name: row
                for name, row in read_metadata(place / METADATA).items()
                if place == folder or (place / name).is_relative_to(folder)
            }
            return _by_metadata(root, folder, place, rows, images, left_out)
    return Part(_by_class_folder(folder, images, left_out), left_out)


def _by_metadata(
    root: Path, folder: Path, place: Path, rows: dict[str, Row], images: list[Path], left_out: list[Unreadable]
) -> Part:
    there, samples = set(images), []
    for name, row in rows.items():
        path = place / name
        if path in there:
            labels = row.labels
            if labels is None:
                labels = (class_folder(folder, path),)
            samples.append(Sample(path, labels, row.columns))
        elif not path.is_symlink():  # which the list has already
            reason = "no image file" if ".." not in Path(name).parts else "a path that leads out of the folder"
            left_out.append(Unreadable(name, f"named in {METADATA}, but {reason}"))
    several = any(row.several for row in rows.values())
    return Part(sorted(samples, key=lambda sample: sample.path), left_out, several)


def class_folder(folder: Path, path: Path) -> str:
    """The class that the place of an image says.

    **Raises:** ValueError where it lies in no class folder, or in one whose name is no text.
    """
    first, *rest = path.relative_to(folder).parts
    if not rest:
        raise ValueError(f"{path} lies in no class folder, and {METADATA} has neither a column label nor labels")
    if first.encode(errors="replace").decode() != first:
        raise ValueError(f"{folder}: the name of the class folder {first!a} is not UTF-8: rename it")
    return first


def _by_class_folder(folder: Path, images: list[Path], left_out: list[Unreadable]) -> list[Sample]:
    classes = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and not p.is_symlink() and p.name[0] != "."]
    if not classes:
        raise ValueError(
            f"{folder} has no class folders: expected a folder of images for each class, or {METADATA}{_some(left_out)}"
        )
    loose = [path for path in images if path.parent == folder]
    left_out += [Unreadable(path.name, "lies in no class folder") for path in loose]
    samples = [Sample(path, (class_folder(folder, path),)) for path in images if path.parent != folder]
    if empty := [name for name in classes if name not in {sample.labels[0] for sample in samples}]:
        accepted = ", ".join(IMAGE_SUFFIXES)
        raise ValueError(
            f"{folder}: no images in the class folders {', '.join(empty)}; accepted are {accepted}{_some(left_out)}"
        )
    return samples


def split(samples: Sequence[Sample], seed: int, held_out: float) -> tuple[list[Sample], list[Sample]]:
    """Holds out a share of the samples of each class (of each combination of labels), drawn by the seed: of one that
    has two or more at least one and not all, of the combinations that occur once the same share of all of them."""
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, sample in enumerate(samples):
        alike[tuple(sorted(sample.labels))].append(number)
    single = [numbers[0] for numbers in alike.values() if len(numbers) == 1]
    groups = [numbers for numbers in alike.values() if len(numbers) > 1]
    if any(len(samples[number].labels) != 1 for number in single):
        groups.append(single)  # a class of one image, though, is to be trained on
    out: set[int] = set()
    for numbers in groups:
        # A seed of each group's own: a new class leaves the split of the others as it was.
        own = crc32("\0".join(sorted(samples[numbers[0]].labels)).encode())
        generator = torch.Generator().manual_seed(mix_seeds(seed, own))
        count = min(max(1, round(held_out * len(numbers))), len(numbers) - 1)
        out.update(numbers[place] for place in torch.randperm(len(numbers), generator=generator).tolist()[:count])
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
    return ImageSet(
        labels,
        lambda index: read_image(samples[index].path),
        [_name(root, sample) for sample in samples],
        {name: [sample.columns.get(name, "") for sample in samples] for name in sorted(names)},
    )


def _name(root: Path, sample: Sample) -> str:
    return sample.path.relative_to(root).as_posix()


def _some(left_out: Sequence[Unreadable]) -> str:
    """A hint at what was left out, for an error of too little that is left."""
    if not left_out:
        return ""
    return f" ({len(left_out)} files were left out: {left_out[0].file!r} is {left_out[0].reason}, …)"
