"""Sets by name, and folders of images."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .fashion_mnist import CLASSES, read_fashion_mnist
from .folders.archive import archive_folder
from .folders.image_folder import open_folder
from .image_set import Data, ImageSet
from .splits.folder_split import split_folder
from .splits.groups import check_groups

NAMED = ("digits", "fashion-mnist")
VALIDATION_SHARE = 0.25
"""Share of the validation split of a set that comes in one piece."""


def open_data(
    name: str,
    split_seed: int | None = None,
    workers: int = 0,
    moved: Sequence[str] | None = None,
    group_column: str | None = None,
) -> Data:
    """Opens a set by name, or a folder of images.

    **Arguments:**

    - `name`: "digits" (1,797 real handwritten digits, 8 × 8, of scikit-learn; a stratified random quarter is the
      validation split), "fashion-mnist" (60,000 and 10,000 images of clothes, 28 × 28; see `fashion_mnist`), or a path:
      class folders or images with a `metadata.csv` or `metadata.jsonl`, in one piece or as `train/` and `val/` (and
      `test/`; `docs/training.md` has a table of names), or a zip of such a folder, which is unpacked into a cache (see
      `archive_folder`).
    - `split_seed`: seed of the random quarter. Without one a folder in one piece is not split: all of it is for
      evaluation. With one its images are decoded, each once, so that copies of an image, exact or near, are on one side
      of the split.
    - `workers`: processes that decode them, default 0: this process.
    - `moved`: `Data.moved` of an earlier opening of the folder, for the same split with nothing decoded; `()` for a
      quarter of each class, wherever copies are.
    - `group_column`: column of the folder's `metadata.csv` whose values are groups (patients, videos, sites) that stay
      on one side of the split, default None.

    **Raises:** FileNotFoundError, ValueError for a name or folder that cannot be opened.
    """
    path, may_be_split = Path(name), False
    if name in NAMED:
        data = _digits(split_seed or 0) if name == "digits" else fashion_mnist()
    elif path.is_dir():
        data, may_be_split = open_folder(path)
    elif path.is_file() and path.suffix.lower() == ".zip":
        data, may_be_split = _unpacked(path)
    else:
        accepted = " and ".join(f'"{known}"' for known in NAMED)
        raise FileNotFoundError(
            f"data {name!r}: no such folder; accepted are {accepted}, and folders of images or zips of them"
        )
    data = replace(data, group_column=group_column)
    check_groups(data, fewest=2)
    if split_seed is None or not may_be_split:
        return data
    return split_folder(data, split_seed, VALIDATION_SHARE, workers, moved)


def _unpacked(path: Path) -> tuple[Data, bool]:
    folder = archive_folder(path)
    try:
        data, may_be_split = open_folder(folder)
        return replace(data, name=str(path)), may_be_split
    except ValueError as error:
        raise ValueError(str(error).replace(str(folder), str(path))) from error


def _digits(split_seed: int) -> Data:
    from sklearn.datasets import load_digits  # its import takes a second
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # Sixteen grey levels, dark ink on white as written: 0…16 -> 255…0.
    pixels = (255 - digits.images * (255 / 16)).round().astype(np.uint8)
    indices = np.arange(len(pixels))
    train, val = train_test_split(indices, test_size=VALIDATION_SHARE, random_state=split_seed, stratify=digits.target)
    whole = ImageSet(torch.from_numpy(digits.target), partial(_image, pixels))
    names = [str(name) for name in digits.target_names]
    return Data("digits", names, whole.subset(train.tolist()), whole.subset(val.tolist()), channels=1)


def fashion_mnist() -> Data:
    """Zalando's 70,000 images of clothes (Xiao et al. 2017), dark on white, with its own test split as `val`.

    **Raises:** FileNotFoundError where it is not on this machine and cannot be downloaded.
    """
    train, val = (_white_ground(pixels, labels) for pixels, labels in read_fashion_mnist())
    return Data("fashion-mnist", list(CLASSES), train, val, channels=1)


def _white_ground(pixels: np.ndarray, labels: np.ndarray) -> ImageSet:
    return ImageSet(torch.from_numpy(labels.astype(np.int64)), partial(_image, 255 - pixels))


def _image(pixels: np.ndarray, index: int) -> Image.Image:
    return Image.fromarray(pixels[index])
