"""Images in: sets by name and folders of images, as sequences of (picture, class number)."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from .fashion_mnist import CLASSES, read_fashion_mnist

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
NAMED = ("digits", "fashion-mnist")
MAX_PIXELS = 100_000_000
"""A picture whose header claims more is not decoded: a small file can claim to be enormous."""


@dataclass(frozen=True)
class ImageSet:
    """Pictures with class numbers. `picture(i)` gives the i-th as a PIL image; nothing is decoded before."""

    labels: Sequence[int]
    picture: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """A set: class names in order, the part to train on (None where all is for evaluation), the held-out part;
    `channels` of its pictures: 1 where all are grey."""

    name: str
    classes: list[str]
    train: ImageSet | None
    val: ImageSet
    channels: int = 3


def open_data(name: str, split_seed: int = 0) -> Data:
    """Opens a set by name, or a folder of images.

    **Arguments:** `name`: "digits" (1,797 real handwritten digits, 8 × 8, that scikit-learn ships; a stratified random
    quarter is held out), "fashion-mnist" (60,000 and 10,000 pictures of clothes, 28 × 28; see `fashion_mnist`), or a
    path: class folders, or `train/` and `val/` with class folders each; `split_seed`: of the random quarter. A folder
    without `val/` is not split: all of it is for evaluation.

    **Raises:** FileNotFoundError, ValueError for what cannot be opened.
    """
    if name == "digits":
        return _digits(split_seed)
    if name == "fashion-mnist":
        return fashion_mnist()
    path = Path(name)
    if not path.is_dir():
        named = " and ".join(f'"{known}"' for known in NAMED)
        raise FileNotFoundError(f"data {name!r}: no such folder; accepted are {named}, and folders of images")
    if (path / "train").is_dir() and (path / "val").is_dir():
        classes, train = _class_folders(path / "train")
        val_classes, val = _class_folders(path / "val")
        if unknown := sorted(set(val_classes) - set(classes)):
            raise ValueError(f"{path / 'val'} has classes that {path / 'train'} lacks: {', '.join(unknown)}")
        number = {name: index for index, name in enumerate(classes)}
        labels = [number[val_classes[label]] for label in val.labels]
        return Data(str(path), classes, train, ImageSet(labels, val.picture))
    classes, images = _class_folders(path)
    return Data(str(path), classes, None, images)


def _digits(split_seed: int) -> Data:
    digits = load_digits()
    # Sixteen grey levels, dark ink on white as written: 0…16 -> 255…0.
    pixels = (255 - digits.images * (255 / 16)).round().astype(np.uint8)
    every = np.arange(len(pixels))
    train, val = train_test_split(every, test_size=0.25, random_state=split_seed, stratify=digits.target)

    def part(numbers: np.ndarray) -> ImageSet:
        return ImageSet(digits.target[numbers].tolist(), lambda index: Image.fromarray(pixels[numbers[index]]))

    return Data("digits", [str(name) for name in digits.target_names], part(train), part(val), channels=1)


def fashion_mnist() -> Data:
    """Zalando's 70,000 pictures of clothes (Xiao et al. 2017), dark on white; its own test part is held out.

    **Raises:** FileNotFoundError where it neither lies here nor can be downloaded.
    """
    parts = []
    for pixels, labels in read_fashion_mnist():

        def picture(index: int, pixels: np.ndarray = pixels) -> Image.Image:
            return Image.fromarray(255 - pixels[index])

        parts.append(ImageSet(labels.tolist(), picture))
    train, val = parts
    return Data("fashion-mnist", list(CLASSES), train, val, channels=1)


def _class_folders(path: Path) -> tuple[list[str], ImageSet]:
    classes = sorted(folder.name for folder in path.iterdir() if folder.is_dir() and not is_hidden(folder))
    if not classes:
        raise ValueError(f"{path} has no class folders: expected a folder of images for each class")
    for name in classes:
        if name.encode(errors="replace").decode() != name:
            raise ValueError(f"{path}: the name of the class folder {name!a} is not UTF-8: rename it")
    samples = [(file, number) for number, name in enumerate(classes) for file in list_images(path / name)]
    if empty := [name for number, name in enumerate(classes) if number not in {label for _, label in samples}]:
        raise ValueError(f"{path}: no images in the class folders {', '.join(empty)}; accepted are {_suffixes()}")
    return classes, ImageSet([label for _, label in samples], lambda index: read_image(samples[index][0]))


def is_hidden(path: Path) -> bool:
    """Whether a name begins with a dot, as of what editors and other systems leave behind."""
    return path.name.startswith(".")


def list_images(path: Path) -> list[Path]:
    """Every image file below a folder by its suffix, sorted by path; hidden ones are none."""
    files = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(file))
    return sorted(file for file in files if file.is_file())


def read_image(path: Path) -> Image.Image:
    """Decodes a picture, upright.

    **Raises:** ValueError where it is no picture, is damaged, or its header claims more than MAX_PIXELS.
    """
    try:
        # Pillow warns of what MAX_PIXELS decides.
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"its header claims {image.width} × {image.height} pixels, more than {MAX_PIXELS:,}")
            upright = ImageOps.exif_transpose(image)
            upright.load()
            if upright.mode in ("I", "F"):
                raise ValueError("its 32-bit grey levels have no known range: convert it to 8 or 16 bits")
            return upright
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _suffixes() -> str:
    return ", ".join(IMAGE_SUFFIXES)
