"""Fashion-MNIST: found on this machine, or downloaded."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torchvision.datasets import FashionMNIST

from vismoe.files import cache_folder

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Folder of Debian's package dataset-fashion-mnist."""
OLD_CACHE = Path.home() / ".cache" / "vismoe"
"""Folder of downloads before `cache_folder` was used."""
PARTS = ("train", "t10k")


def read_fashion_mnist() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pixels (N, 28, 28), 0 is background, and class numbers (N,), of the training and the test split.

    It is looked for in the folder of Debian's package, then in torchvision's layout below ./data and the cache, then
    downloaded to the cache.

    **Raises:** FileNotFoundError where it is not found and cannot be downloaded; ValueError for a damaged file.
    """
    cache = cache_folder()
    places = (DEBIAN, _raw(Path("data")), _raw(cache), _raw(OLD_CACHE))
    folder = next((place for place in places if _complete(place)), None)
    if folder is None:
        folder = _raw(cache)
        try:
            FashionMNIST(str(cache), download=True)
        except Exception as error:  # a network without access raises errors of many types
            raise FileNotFoundError(
                f"fashion-mnist is not in {DEBIAN}, data/FashionMNIST/raw or {folder}, and cannot be downloaded "
                f"({error}): apt-get install dataset-fashion-mnist, or copy its four files there"
            ) from error
    for part in PARTS:
        yield _read(folder, f"{part}-images-idx3-ubyte", 3), _read(folder, f"{part}-labels-idx1-ubyte", 1)


def _raw(root: Path) -> Path:
    return root / "FashionMNIST" / "raw"


def _files(folder: Path, name: str) -> list[Path]:
    return [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]


def _complete(folder: Path) -> bool:
    names = (f"{part}-{kind}-ubyte" for part in PARTS for kind in ("images-idx3", "labels-idx1"))
    return all(_files(folder, name) for name in names)


def _read(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """An IDX file: two zero bytes, type 8 (unsigned bytes), the number of dimensions, their sizes, the data."""
    path = _files(folder, name)[0]
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    header = 4 * (1 + dimensions)
    if content[:4] == bytes([0, 0, 8, dimensions]) and len(content) >= header:
        sizes = np.frombuffer(content, ">i4", dimensions, offset=4)
        if len(content) == header + np.prod(sizes):
            return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)
    raise ValueError(f"{path} is damaged: it is not the IDX file that its name says")
