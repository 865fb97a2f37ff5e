"""Opens data sets by name, and folders of images."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .boxes.box_folder import open_box_folder
from .fashion_mnist import CLASSES, read_fashion_mnist
from .folders.archive import archive_folder
from .folders.image_folder import open_folder
from .image_set import Data, ImageSet
from .images import list_folder
from .splits.folder_split import split_folder
from .splits.groups import check_groups

NAMED = ("digits", "fashion-mnist")
VALIDATION_SHARE = 0.25
"""Fraction of validation images in the random split of a data set without splits."""


def open_data(
    name: str,
    split_seed: int | None = None,
    workers: int = 0,
    moved: Sequence[str] | None = None,
    group_column: str | None = None,
) -> Data:
    """Opens a data set.

    Accepted names:

    - "digits": 1,797 handwritten digits of scikit-learn, 8 × 8 pixels; a random 25 % of each class is the validation
      split.
    - "fashion-mnist": 60,000 training and 10,000 test images of clothes, 28 × 28 pixels.
    - a folder: with a folder of images for each class, or images and a `metadata.csv` or `metadata.jsonl`. It may have
      the splits `train/`, `val/` and `test/`; `docs/training.md` lists other accepted names.
    - a folder of images with boxes: COCO JSON, Pascal VOC XML, YOLO text files, or a `metadata.jsonl` with objects;
      `docs/boxes.md` describes them.
    - a zip of such a folder; it is unpacked into the cache.

    **Arguments:**

    - `name`: the name or path.
    - `split_seed`: seed of the random split of a folder without splits: 25 % of each class are for validation. Its
      images are decoded, each once, so that copies of an image (exact or near) stay in one split. Default None: no
      split, all images are for evaluation. For "digits" also the seed of its split; default 0.
    - `workers`: number of processes that decode images; default 0: this process.
    - `moved`: `Data.moved` of the same folder opened before: repeats its split without decoding images. `()`: the split
      ignores copies. Default None: copies are searched for.
    - `group_column`: column of the metadata with groups of images (patients, videos, sites); each group stays in one
      split. Default None: no groups.

    **Returns:** the data set.

    **Raises:** FileNotFoundError, ValueError if the name or folder cannot be opened.
    """
    path, is_unsplit = Path(name), False
    if name in NAMED:
        data = _digits(split_seed or 0) if name == "digits" else fashion_mnist()
    elif path.is_dir():
        data, is_unsplit = _open(path)
    elif path.is_file() and path.suffix.lower() == ".zip":
        data, is_unsplit = _unpacked(path)
    else:
        accepted = " and ".join(f'"{known}"' for known in NAMED)
        raise FileNotFoundError(
            f"data {name!r}: no such folder; accepted are {accepted}, and folders of images or zips of them"
        )
    data = replace(data, group_column=group_column)
    check_groups(data, fewest=2)
    if split_seed is None or not is_unsplit:
        return data
    return split_folder(data, split_seed, VALIDATION_SHARE, workers, moved)


def _open(folder: Path) -> tuple[Data, bool]:
    """The data set in a folder, and whether it can be split: with boxes if the folder has annotations."""
    listing = list_folder(folder)
    return open_box_folder(folder, listing) or open_folder(folder, listing)


def _unpacked(path: Path) -> tuple[Data, bool]:
    folder = archive_folder(path)
    try:
        data, is_unsplit = _open(folder)
        return replace(data, name=str(path)), is_unsplit
    except ValueError as error:
        raise ValueError(str(error).replace(str(folder), str(path))) from error


def _digits(split_seed: int) -> Data:
    from sklearn.datasets import load_digits  # its import takes a second
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # scikit-learn has white ink on black, levels 0…16; here dark ink on white, 255…0.
    pixels = (255 - digits.images * (255 / 16)).round().astype(np.uint8)
    indices = np.arange(len(pixels))
    train, val = train_test_split(indices, test_size=VALIDATION_SHARE, random_state=split_seed, stratify=digits.target)
    whole = ImageSet(torch.from_numpy(digits.target), partial(_image, pixels))
    names = [str(name) for name in digits.target_names]
    return Data("digits", names, whole.subset(train.tolist()), whole.subset(val.tolist()), channels=1)


def fashion_mnist() -> Data:
    """Fashion-MNIST: 70,000 images of clothes (Xiao et al. 2017), here dark on white. Its test split is `val`.

    **Raises:** FileNotFoundError if it is not on this machine and the download fails; ValueError if a file is damaged.
    """
    train, val = (_on_white(pixels, labels) for pixels, labels in read_fashion_mnist())
    return Data("fashion-mnist", list(CLASSES), train, val, channels=1)


def _on_white(pixels: np.ndarray, labels: np.ndarray) -> ImageSet:
    return ImageSet(torch.from_numpy(labels.astype(np.int64)), partial(_image, 255 - pixels))


def _image(pixels: np.ndarray, index: int) -> Image.Image:
    return Image.fromarray(pixels[index])
