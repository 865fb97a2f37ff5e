"""vismoe embed"""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from vismoe.adapt import split_of_files
from vismoe.data import Data, check_images, open_data
from vismoe.features import (
    check_embeddings,
    check_features,
    class_names,
    features,
    file_names,
    open_images,
    whole,
    write_embeddings,
)
from vismoe.files import counted
from vismoe.parallel import resolve_device

from ..shared.data import own_run
from ..shared.model import open_resized
from ..shared.notes import note_set
from ..shared.progress import ImageProgress
from ..shared.values import check_at_least


def embed(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    images: Annotated[
        list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE…]", help_behavior_hint="(or --data)")
    ],
    /,
    out: Path,
    data: str | None = None,
    format: Literal["npy", "parquet"] | None = None,
    views: tuple[Literal["plain", "mirrored"], ...] = ("plain",),
    image_size: int | None = None,
    device: str = "auto",
    batch_size: int = 64,
    workers: int = 0,
) -> None:
    """Write the features of images (the input of the model's classifier) to a file, with file names and labels.

    Example: vismoe embed runs/demo --data digits --out digits.npy

    Args:
        model: Run folder, model folder, timm:NAME, hf:ORG/NAME, PRESET.TAG, or preset (random weights).
        images: Image files or folders of images; unreadable files are listed and left out.
        out: FILE.npy: a float32 array (images, features), with a table FILE.csv of files and labels next to it.
            FILE.parquet: both in one file. An existing file is not overwritten.
        data: Data set instead of images: digits, fashion-mnist, class folders, or images with a metadata.csv.
            All splits are written, training images first; the column "part" has each image's split.
        format: npy or parquet; default: that of the file's suffix.
        views: Views of each image whose features are averaged.
        image_size: Image size in pixels, a multiple of the patch size; default: the model's.
            Time grows with the square of the size.
        device: Device: auto, cpu, cuda or mps.
        batch_size: Images per forward pass.
        workers: Number of data loading worker processes; 0: the main process.
    """
    if (data is None) == (not images):
        raise ValueError(f"name either images or a data set with --data: vismoe embed {model} IMAGE…")
    check_at_least(1, batch_size=batch_size)
    check_at_least(0, workers=workers)
    check_embeddings(out, format)
    network = open_resized(model, image_size).to(resolve_device(device))
    check_features(network)  # before images are decoded
    opened = check_images(open_images(images) if data is None else _whole(model, data), 1.0, workers)
    note_set(opened, network, data is not None and own_run(model, data) is not None)
    with ImageProgress("features") as progress:
        vectors = features(network, opened.val, batch_size, workers, views, watch=progress)
    names, labels = file_names(opened.val), class_names(opened.val, opened.classes)
    written = write_embeddings(out, names, labels, vectors, format, opened.val.columns.get("part", ()))
    count, width = vectors.shape
    print(f"{counted(count, 'image')}, {width:,} features each: {', '.join(map(str, reversed(written)))}")


def _whole(model: str, data: str) -> Data:
    run, opened = own_run(model, data), open_data(data).for_testing
    return whole(opened, None if run is None else split_of_files(run))


def main(arguments: list[str]) -> None:
    tyro.cli(embed, args=arguments, prog="vismoe embed")
