"""Reads Pascal VOC's XML: a file for each image.

Coordinates are the edges of boxes, 0 to the image's width, as LabelImg, CVAT and Roboflow write them, and as
torchvision and Albumentations take them. Only in the files of the VOC challenge itself the first pixel has the
coordinate 1 (development kit of VOC2012, section 4), so there the left and upper edges are one less."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from xml.etree import ElementTree

from ..folders.layout import Split
from ..images import Unreadable
from .annotations import AnnotatedImage, Annotations, BoxFolder, Found, Object, read_lines
from .matching import by_split, split_of_path

KIND = "Pascal VOC XML"
CORNERS = ("xmin", "ymin", "xmax", "ymax")
CHALLENGE = "PASCAL VOC"
"""Beginning of `source/annotation` in the files of the VOC challenge."""
LISTS: Mapping[Split, Sequence[str]] = {
    "train": ("train", "trainval"),
    "validation": ("val",),
    "test": ("test",),
}
"""Names of the lists of splits in ImageSets/Main; the first that exists is used."""


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses documents with a DOCTYPE. Only there entities are declared, which can expand without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a DOCTYPE, which is not read: remove it")


def find_voc(folder: BoxFolder) -> Found | None:
    """The XML files of Pascal VOC in a folder; None if there are none.

    **Raises:** ValueError if such a file is not XML, or has a DOCTYPE.
    """
    roots = {path: root for path in folder.others if (root := _read_document(path)) is not None}
    if not roots:
        return None
    first = folder.relative(next(iter(roots)))
    source = first if len(roots) == 1 else f"{len(roots):,} files such as {first}"
    return Found(KIND, source, partial(_read, folder, roots))


def _read_document(path: Path) -> ElementTree.Element | None:
    """The content of an XML file; None if it is not Pascal VOC's."""
    if path.suffix.lower() != ".xml":
        return None
    content = path.read_bytes()
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
    except (ElementTree.ParseError, ValueError) as error:
        if b"<annotation" not in content and path.parent.name.lower() != "annotations":
            return None
        fault = " is not XML" if isinstance(error, ElementTree.ParseError) else ""
        raise ValueError(f"{path}{fault}: {error}") from error
    return root if root.tag == "annotation" else None


def _read(folder: BoxFolder, roots: Mapping[Path, ElementTree.Element]) -> Annotations:
    images: dict[str, AnnotatedImage] = {}
    of_file: dict[str, Path] = {}
    left_out: list[Unreadable] = []
    notes, renamed = [], []
    for path, root in roots.items():
        file = _image_of(folder, path, root)
        if file is None:
            left_out.append(Unreadable(folder.relative(path), "its image does not exist"))
            continue
        if file in images:
            raise ValueError(
                f"{folder.root}: {folder.listed([of_file[file], path])} are of one image, {file}: remove one"
            )
        if _filename(root) not in ("", PurePosixPath(file).name) and _filename(root) in folder.images.by_name:
            renamed.append(folder.relative(path))
        size, objects = _content(path, root)
        images[file], of_file[file] = AnnotatedImage(file, objects, size), path
    if not images:
        raise ValueError(f"{folder.root}: there are no images for the XML files, {folder.listed(list(roots))}")
    if renamed:
        notes.append(
            f"XML files name another image in <filename>, {len(renamed):,} such as {renamed[0]}: each is taken for the "
            "image with its own name"
        )
    if any(_is_of_challenge(root) for root in roots.values()):
        notes.append("files of the VOC challenge: coordinates begin at 1, so left and upper edges are one less")
    splits = _splits(folder, images, left_out)
    lists = [path for path in folder.others if _is_list(path)]
    return Annotations(splits, [*roots, *lists], "has no XML file", (), False, left_out, notes)


def _filename(root: ElementTree.Element) -> str:
    """The name of the image that a file gives, without folders."""
    return PureWindowsPath(root.findtext("filename", "").strip()).name


def _image_of(folder: BoxFolder, path: Path, root: ElementTree.Element) -> str | None:
    """The image of an XML file: it has the same name, or the name in <filename>."""
    near = folder.relative(path)
    split = split_of_path(near)
    named = _filename(root)
    stems = folder.images.by_stem.get(PurePosixPath(near).stem, [])
    try:
        if len(stems) > 1 and named in {PurePosixPath(file).name for file in stems}:
            return folder.images.named(named, near, split)
        return folder.images.with_stem(PurePosixPath(near).stem, near, split) or folder.images.named(named, near, split)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _is_of_challenge(root: ElementTree.Element) -> bool:
    return root.findtext("source/annotation", "").strip().startswith(CHALLENGE)


def _content(path: Path, root: ElementTree.Element) -> tuple[tuple[int, int] | None, list[Object]]:
    """The size and the objects that a file gives; the size is None if it is not given, or 0 as some tools write."""
    width, height = (root.findtext(f"size/{side}") for side in ("width", "height"))
    size = None
    if width is not None or height is not None:
        numbers = [_number(path, "size", side, text) for side, text in (("width", width), ("height", height))]
        size = (int(numbers[0]), int(numbers[1])) if all(numbers) else None
    offset = 1 if _is_of_challenge(root) else 0
    objects = []
    for number, element in enumerate(root.iterfind("object"), start=1):
        place = f"object {number}"
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{path}: {place} has no name")
        if element.find("bndbox") is None:
            raise ValueError(f"{path}: {place} ({name}) has no bndbox")
        left, top, right, bottom = (
            _number(path, f"{place} ({name})", corner, element.findtext(f"bndbox/{corner}")) for corner in CORNERS
        )
        difficult = element.findtext("difficult", "0").strip() or "0"
        if difficult not in ("0", "1"):
            raise ValueError(f"{path}: {place} ({name}): difficult: expected 0 or 1, found {difficult!r}")
        objects.append(Object(name, left - offset, top - offset, right, bottom, difficult == "1"))
    return size, objects


def _number(path: Path, place: str, name: str, text: str | None) -> float:
    if text is None:
        raise ValueError(f"{path}: {place} has no {name}")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path}: {place}: {name}: expected a number, found {text.strip()!r}")
    return value


def _splits(
    folder: BoxFolder, images: Mapping[str, AnnotatedImage], left_out: list[Unreadable]
) -> dict[Split | None, list[AnnotatedImage]]:
    """The images of each split; adds those that are in none, or missing, to `left_out`."""
    lists = _lists(folder)
    if not lists:
        try:
            files = by_split(images)
        except ValueError as error:
            raise ValueError(f"{folder.root}: {error}") from error
        return {split: [images[file] for file in names] for split, names in files.items()}
    by_stem: dict[str, str] = {}
    for file in images:
        stem = PurePosixPath(file).stem
        if stem in by_stem:
            raise ValueError(f"{folder.root}: {by_stem[stem]} and {file} have one name in ImageSets/Main: rename one")
        by_stem[stem] = file
    splits: dict[Split | None, list[AnnotatedImage]] = {}
    list_of: dict[str, Path] = {}
    for split, path in lists.items():
        splits[split] = []
        for number, stem in _stems(path):
            if stem in list_of:
                raise ValueError(f"{path}, line {number}: {stem!r} is in {list_of[stem].name} already: remove one")
            list_of[stem] = path
            if stem in by_stem:
                splits[split].append(images[by_stem[stem]])
            elif stem not in folder.images.by_stem:
                left_out.append(Unreadable(stem, f"named in {path.name}, but no such image exists"))
        if not splits[split]:
            raise ValueError(f"{path} names no image that has an XML file")
    for stem, file in by_stem.items():
        if stem not in list_of:
            left_out.append(Unreadable(file, "in no list of ImageSets/Main"))
    return splits


def _lists(folder: BoxFolder) -> dict[Split, Path]:
    """The lists of the splits in ImageSets/Main."""
    paths = {path.stem: path for path in folder.others if _is_list(path)}
    found = {split: [paths[name] for name in names if name in paths] for split, names in LISTS.items()}
    return {split: candidates[0] for split, candidates in found.items() if candidates}


def _is_list(path: Path) -> bool:
    return path.suffix == ".txt" and [part.lower() for part in path.parts[-3:-1]] == ["imagesets", "main"]


def _stems(path: Path) -> Iterator[tuple[int, str]]:
    """The names in a list with the numbers of their lines. Lists of VOC may have a number after the name."""
    for number, line in enumerate(read_lines(path), start=1):
        if stem := re.sub(r"\s+-?[01]$", "", line.strip()):
            yield number, stem
