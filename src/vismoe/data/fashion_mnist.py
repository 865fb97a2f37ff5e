"""Reads Fashion-MNIST from this machine, or downloads it."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torchvision.datasets import FashionMNIST

from vismoe.files import cache_folder

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Folder of the Debian package dataset-fashion-mnist."""
OLD_CACHE = Path.home() / ".cache" / "vismoe"
"""Download folder of versions before `cache_folder` existed."""
SPLITS = ("train", "t10k")
"""Names of the training and the test split in file names."""


def read_fashion_mnist() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the training split, then the test split: pixels (N, 28, 28), with 0 as background, and class numbers (N,).

    Searches the folder of the Debian package, then torchvision's folders below ./data and below the cache. If no folder
    has the files, downloads them to the cache.

    **Raises:** FileNotFoundError if no folder has the files and the download fails; ValueError if a file is damaged.
    """
    cache = cache_folder()
    folders = (DEBIAN, _raw(Path("data")), _raw(cache), _raw(OLD_CACHE))
    folder = next((folder for folder in folders if _is_complete(folder)), None)
    if folder is None:
        folder = _raw(cache)
        try:
            FashionMNIST(str(cache), download=True)
        except Exception as error:  # a network without access raises errors of many types
            raise FileNotFoundError(
                f"fashion-mnist is not in {DEBIAN}, data/FashionMNIST/raw or {folder}, and cannot be downloaded "
                f"({error}): apt-get install dataset-fashion-mnist, or copy its four files there"
            ) from error
    for split in SPLITS:
        yield _read(folder, f"{split}-images-idx3-ubyte", 3), _read(folder, f"{split}-labels-idx1-ubyte", 1)


def _raw(root: Path) -> Path:
    return root / "FashionMNIST" / "raw"


def _files(folder: Path, name: str) -> list[Path]:
    return [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]


def _is_complete(folder: Path) -> bool:
    names = (f"{split}-{kind}-ubyte" for split in SPLITS for kind in ("images-idx3", "labels-idx1"))
    return all(_files(folder, name) for name in names)


def _read(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """Reads an IDX file: two zero bytes, type 8 (unsigned bytes), number of dimensions, their sizes, data."""
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
    raise ValueError(f"{path} is damaged: it is not a complete IDX file with {dimensions} dimensions")
