"""Writes features to .npy or .parquet files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vismoe.data import Data, ImageSet, Unreadable, list_folder, read_image
from vismoe.files import readable, whole_files, write_table

Format = Literal["npy", "parquet"]
PART = "part"
FORMATS: tuple[Format, ...] = ("npy", "parquet")


def open_images(paths: Sequence[str | Path]) -> Data:
    """Opens image files and folders as a data set without classes, all for evaluation.

    **Raises:** FileNotFoundError for a missing path; ValueError if there are no images.
    """
    files: list[Path] = []
    left_out: list[Unreadable] = []
    notes: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            listing = list_folder(path)
            files += listing.images
            left_out += [
                Unreadable(readable((path / entry.file).as_posix()), entry.reason) for entry in listing.left_out
            ]
            notes += [f"{path}: {text}" for text in listing.notes]
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such image or folder")
    if not files:
        raise ValueError(f"no images in {', '.join(map(str, paths)) or 'nothing: name files or folders'}")
    labels = torch.zeros(len(files), 0, dtype=torch.bool)
    images = ImageSet(labels, partial(_read, files), [readable(path.as_posix()) for path in files])
    return Data("the images", [], None, images, left_out=tuple(left_out), notes=tuple(notes))


def _read(files: Sequence[Path], index: int) -> Image.Image:
    return read_image(files[index])


def whole(data: Data, parts: Mapping[str, str] | None = None) -> Data:
    """Joins the splits of a data set for evaluation, training split first. The column `part` has each image's split, if
    there is more than one.

    **Arguments:**

    - `data`: the data set.
    - `parts`: the split of each file; files that are not in it get "". Default: those of `data`, named train and
      held-out.
    """
    if data.train is None:
        images, part_of_image = data.val, [""] * len(data.val)
    else:
        labels = torch.cat([data.train.labels, data.val.labels])
        files = [*data.train.files, *data.val.files]
        images = ImageSet(labels, partial(_of_parts, data.train, data.val), files)
        part_of_image = ["train"] * len(data.train) + ["held-out"] * len(data.val)
    if parts:
        part_of_image = [parts.get(file, "") for file in images.files]
    images = replace(images, columns={PART: part_of_image} if any(part_of_image) else {}, further={})
    return Data(data.name, data.classes, None, images, data.channels, data.left_out, notes=data.notes)


def _of_parts(first: ImageSet, second: ImageSet, index: int) -> Image.Image:
    return first.image(index) if index < len(first) else second.image(index - len(first))


def file_names(images: ImageSet) -> list[str]:
    """The file name of each image; its number in data sets without files."""
    return list(images.files) or [str(number) for number in range(len(images))]


def class_names(images: ImageSet, classes: Sequence[str]) -> list[str]:
    """The class of each image; several are joined by |, as in `metadata.csv`."""
    if images.labels.ndim == 1:
        return [classes[number] for number in images.labels.tolist()]
    return ["|".join(classes[k] for k in row.nonzero()[:, 0].tolist()) for row in images.labels]


def check_embeddings(path: Path, format: Format | None = None) -> Format:
    """The format of a file: `format` if given, otherwise that of the suffix.

    **Raises:** ValueError if neither names a format, or pyarrow is not installed for parquet; FileExistsError if the
    file or its table exists; FileNotFoundError if the folder does not exist.
    """
    suffix = path.suffix[1:].lower()
    chosen = format or next((known for known in FORMATS if known == suffix), None)
    if chosen is None:
        raise ValueError(f"{path}: unknown format; accepted are .npy and .parquet, or --format")
    if chosen == "parquet" and find_spec("pyarrow") is None:
        raise ValueError(f"{path}: parquet needs pyarrow: pip install 'vismoe[embed]', or write .npy")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")
    if existing := [str(target) for target in _targets(path, chosen) if target.exists()]:
        raise FileExistsError(
            f"{' and '.join(existing)} exist{'s' if len(existing) == 1 else ''}: choose another name, or remove it"
        )
    return chosen


def _targets(path: Path, format: Format) -> list[Path]:
    if format == "parquet":
        return [path]
    if path.suffix.lower() == ".csv":
        raise ValueError(f"{path}: this name is taken by the table of labels: choose another suffix, such as .npy")
    return [path.with_suffix(".csv"), path]


def write_embeddings(
    path: Path,
    files: Sequence[str],
    labels: Sequence[str],
    vectors: Float[Tensor, "N d"],
    format: Format | None = None,
    parts: Sequence[str] = (),
) -> list[Path]:
    """Writes N vectors with their files, labels and, if given, splits. All files are written, or none.

    npy: a float32 array (N, d), and a table FILE.csv with the columns file, label and part (see
    `vismoe.files.write_table`). parquet: one file with
    these columns and embedding, a list of d float32.

    **Arguments:**

    - `path`: the file.
    - `files`: N file names.
    - `labels`: N class names.
    - `vectors`: (N, d).
    - `format`: "npy" or "parquet"; default: that of the suffix.
    - `parts`: N names of splits; default: no column.

    **Returns:** the written files.

    **Raises:** as `check_embeddings`.
    """
    format = check_embeddings(path, format)
    targets = _targets(path, format)
    columns = {
        name: [readable(cell) for cell in cells]
        for name, cells in (("file", files), ("label", labels), (PART, parts))
        if cells
    }
    array = vectors.float().numpy()
    with whole_files(targets) as asides:
        if format == "parquet":
            _write_parquet(asides[0], columns, array)
        else:
            with asides[0].open("w", encoding="utf-8", newline="") as file:
                write_table([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], file)
            with asides[1].open("wb") as binary:
                np.save(binary, array, allow_pickle=False)
        check_embeddings(path, format)  # another process may have written the file meanwhile
    return targets


def _write_parquet(path: Path, columns: Mapping[str, Sequence[str]], array: np.ndarray) -> None:
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(array.reshape(-1)), array.shape[1])
    texts = {name: arrow.array(cells, arrow.string()) for name, cells in columns.items()}
    parquet.write_table(arrow.table(texts | {"embedding": vectors}), path)
