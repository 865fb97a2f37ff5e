"""Opens a folder of images with boxes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from vismoe.files import counted, readable

from ..folders.layout import Split
from ..folders.metadata import TABLES, read_tables
from ..image_set import Data, ImageSet
from ..images import Listing, Unreadable
from .annotations import Annotations, BoxFolder, Found
from .coco import find_coco
from .matching import SPLIT_NAMES, ImageIndex, split_of_path
from .metadata_objects import find_metadata_objects
from .objects import Objects
from .placed import PlacedImage, Report, place, read_sized
from .voc import find_voc
from .yolo import find_yolo

FORMATS = (find_coco, find_voc, find_yolo, find_metadata_objects)
SHOWN = 5
"""Max number of names in a note."""


def open_box_folder(root: Path, listing: Listing) -> tuple[Data, bool] | None:
    """Opens a folder of images with boxes as a data set.

    **Arguments:**

    - `root`: the folder.
    - `listing`: its content.

    **Returns:** the data set, and whether it can be split, as `open_folder`; None if the folder has no annotations with
    boxes. `labels` say which classes an image shows, without ignored objects. `further` has the functions "boxes",
    "classes" and "ignored".

    **Raises:** ValueError if annotations are broken, in several formats, or of other images.
    """
    paths = {readable(path.relative_to(root).as_posix()): path for path in listing.images}
    found = find_annotations(BoxFolder(root, ImageIndex(paths), listing.other_files))
    if found is None:
        return None
    annotations = found.read()
    report = Report()
    splits = {
        split: place(sorted(images, key=lambda image: image.file), paths, annotations.fractions, report)
        for split, images in annotations.splits.items()
    }
    if report.other_size:
        raise ValueError(
            f"{root}: the annotations of {counted(len(report.other_size), 'image')} give another size than the image "
            f"has, such as {report.other_size[0]}; put the annotated images into the folder"
        )
    splits, notes = _used(root, splits)
    classes, notes_of_classes = _classes(root, annotations, splits)
    unlisted, notes_of_unlisted = _unlisted(listing, annotations, report, paths)
    read = set(annotations.files)
    others = [path for path in listing.other_files if path not in read]
    columns, notes_of_tables, missing = _columns(root, listing, others, paths)
    sets = {split: _image_set(images, paths, classes, columns) for split, images in splits.items()}
    # Annotation files are read, so the listing's note about files that are not read must not count them.
    notes = [
        _note_of_found(found, splits),
        *report.notes(),
        *_notes_of_objects(splits),
        *annotations.notes,
        *notes_of_classes,
        *notes,
        *notes_of_unlisted,
        *notes_of_tables,
        *replace(listing, other_files=others).notes,
    ]
    train, validation, test = (sets.get(split) for split in ("train", "validation", "test"))
    whole = sets.get(None)
    if whole is not None or validation is None:
        val, train, is_unsplit = whole or train, None, True
    else:
        val, is_unsplit = validation, False
    assert val is not None
    # The listing already gives the reason for images that exist and cannot be used, such as links.
    listed = {PurePosixPath(entry.file).name for entry in listing.left_out}
    named = [entry for entry in annotations.left_out if PurePosixPath(entry.file).name not in listed]
    left_out = (*listing.left_out, *named, *report.unreadable, *unlisted, *missing)
    data = Data(str(root), classes, train, val, left_out=left_out, test=test, notes=tuple(notes))
    return data, is_unsplit


def find_annotations(folder: BoxFolder) -> Found | None:
    """The annotations of a folder; None if it has none.

    **Raises:** ValueError if it has annotations in several formats, or an annotation file is broken.
    """
    found = [annotations for find in FORMATS if (annotations := find(folder)) is not None]
    if len(found) > 1:
        listed = " and ".join(f"{each.kind} ({each.source})" for each in found)
        raise ValueError(f"{folder.root} has boxes in several formats, {listed}: remove the files of all but one")
    return found[0] if found else None


def _used(
    root: Path, splits: Mapping[Split | None, list[PlacedImage]]
) -> tuple[dict[Split | None, list[PlacedImage]], list[str]]:
    """The splits that are used, and notes. Without a validation split, the test split takes its place."""
    for split, images in splits.items():
        if not images:
            raise ValueError(f"{root}: the {SPLIT_NAMES[split]} has no readable image with annotations")
    used, notes = dict(splits), []
    if "validation" not in used and "test" in used:
        used["validation"] = used.pop("test")
    if "train" not in used and "test" in used:
        del used["test"]
        notes.append("evaluation uses the validation split; not used: the test split")
    return used, notes


def _classes(
    root: Path, annotations: Annotations, splits: Mapping[Split | None, Sequence[PlacedImage]]
) -> tuple[list[str], list[str]]:
    """The names of the classes, and notes about names. Names that only ignored objects have are no classes."""
    names = {
        split: {item.name for image in images for item in image.objects if not item.ignored}
        for split, images in splits.items()
    }
    first = next(split for split in (None, "train", "validation") if split in names)
    if not names[first]:
        raise ValueError(f"{root}: the {SPLIT_NAMES[first]} has no boxes: annotate some images")
    for split, of_split in names.items():
        if unknown := sorted(of_split - names[first]):
            raise ValueError(
                f"{root}: the {SPLIT_NAMES[split]} has classes that the {SPLIT_NAMES[first]} lacks: "
                f"{', '.join(unknown)}; move images of them into the {SPLIT_NAMES[first]}, or remove their boxes"
            )
    order = list(dict.fromkeys(annotations.order))
    classes = [name for name in order if name in names[first]]
    classes += sorted(names[first].difference(classes))
    notes = []
    if unused := [name for name in order if name not in names[first]]:
        notes.append(f"classes without boxes are not used: {_listed(unused)}")
    by_plain: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        by_plain["".join(name.split()).casefold()].append(name)
    if alike := [each for each in by_plain.values() if len(each) > 1]:
        notes.append(
            f"names of classes differ only by case or spaces: {', '.join(map(repr, alike[0]))}; if they are one class, "
            "rename it"
        )
    return classes, notes


def _unlisted(
    listing: Listing, annotations: Annotations, report: Report, paths: Mapping[str, Path]
) -> tuple[list[Unreadable], list[str]]:
    """The images that no annotation names, and notes about whole splits of them."""
    known = {image.file for images in annotations.splits.values() for image in images}
    known |= {entry.file for entry in (*listing.left_out, *annotations.left_out, *report.unreadable)}
    unlisted = [file for file in paths if file not in known]
    others: dict[Split, list[str]] = defaultdict(list)
    if None not in annotations.splits:
        for file in unlisted:
            split = split_of_path(file)
            if split is not None and split not in annotations.splits:
                others[split].append(file)
    notes = [
        f"the {SPLIT_NAMES[split]} is not in the annotations, so it is not used: {counted(len(files), 'image')} such "
        f"as {files[0]}"
        for split, files in others.items()
    ]
    of_others = {file for files in others.values() for file in files}
    return [Unreadable(file, annotations.unlisted) for file in unlisted if file not in of_others], notes


def _columns(
    root: Path, listing: Listing, others: Sequence[Path], paths: Mapping[str, Path]
) -> tuple[dict[str, Mapping[str, str]], list[str], list[Unreadable]]:
    """The columns of tables next to the annotations, by image; notes; and the images that tables name and the folder
    lacks."""
    found = [path for path in others if path.name in TABLES]
    folders = ["" if path.parent == root else path.parent.relative_to(root).as_posix() for path in found]
    tables, missing = read_tables(root, folders, paths, [entry.file for entry in listing.left_out])
    rows = {file: row for table in tables.values() for file, row in table.items()}
    notes = []
    if any(row.labels is not None for row in rows.values()):
        notes.append(f"labels in {found[0].name} are not used: classes are those of the boxes")
    return {file: row.columns for file, row in rows.items()}, notes, missing


def _image_set(
    images: Sequence[PlacedImage],
    paths: Mapping[str, Path],
    classes: Sequence[str],
    columns: Mapping[str, Mapping[str, str]],
) -> ImageSet:
    numbers = {name: number for number, name in enumerate(classes)}
    objects = Objects.of(
        [(height, width) for width, height in (image.size for image in images)],
        [
            [(numbers[each.name], each[1:5], each.ignored) for each in image.objects if each.name in numbers]
            for image in images
        ],
    )
    values = [{**image.image.columns, **columns.get(image.image.file, {})} for image in images]
    names = sorted({name for of_image in values for name in of_image})
    return ImageSet(
        objects.labels(len(classes)),
        partial(read_sized, [paths[image.image.file] for image in images], [image.size for image in images]),
        [image.image.file for image in images],
        {name: [of_image.get(name, "") for of_image in values] for name in names},
        objects.further(),
    )


def _note_of_found(found: Found, splits: Mapping[Split | None, Sequence[PlacedImage]]) -> str:
    images = [image for of_split in splits.values() for image in of_split]
    boxes = sum(len(image.objects) for image in images)
    objects = counted(boxes, "box", "boxes")
    return f"boxes from {found.kind}: {found.source}, {objects} on {counted(len(images), 'image')}"


def _notes_of_objects(splits: Mapping[Split | None, Sequence[PlacedImage]]) -> list[str]:
    images = [image for of_split in splits.values() for image in of_split]
    ignored = sum(item.ignored for image in images for item in image.objects)
    without = sum(not image.objects for image in images)
    notes = []
    if ignored:
        of, it = ("1 box is", "it is") if ignored == 1 else (f"{ignored:,} boxes are", "they are")
        notes.append(f"{of} of a crowd or difficult: not trained on, and no metric depends on whether {it} found")
    if without:
        notes.append("1 image has no box" if without == 1 else f"{without:,} images have no boxes")
    return notes


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
