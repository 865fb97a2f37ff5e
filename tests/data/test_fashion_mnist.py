"""pytest tests/data/test_fashion_mnist.py: where the set is looked for, and its format read."""

import gzip
import struct

import numpy as np
import pytest

from vismoe.data import fashion_mnist as files
from vismoe.data import open_data


def write(folder, packed):
    """Five training and two test images in the format of the set, written by hand."""
    folder.mkdir(parents=True)
    for part, number in (("train", 5), ("t10k", 2)):
        pixels = np.arange(number * 28 * 28, dtype=np.int64).astype(np.uint8)
        images = struct.pack(">IIII", 0x803, number, 28, 28) + pixels.tobytes()
        labels = struct.pack(">II", 0x801, number) + bytes(range(number))
        for name, content in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No place has the set, and there is no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(files, "OLD_CACHE", tmp_path / "old")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def refuse(*arguments, **options):
        raise RuntimeError("no network")

    monkeypatch.setattr(files, "FashionMNIST", refuse)
    return tmp_path


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "place", ["debian", "data/FashionMNIST/raw", "cache/vismoe/FashionMNIST/raw", "old/FashionMNIST/raw"]
)
def test_found_where_it_lies(nowhere, place, packed):
    """Debian's package and torchvision's layout, packed or not; dark on white."""
    write(nowhere / place, packed)
    opened = open_data("fashion-mnist")
    assert (opened.channels, opened.classes[9]) == (1, "ankle boot")
    assert (list(opened.train.labels), list(opened.val.labels)) == ([0, 1, 2, 3, 4], [0, 1])
    assert opened.train.image(0).getpixel((3, 0)) == 255 - 3
    assert opened.val.image(1).getpixel((0, 1)) == 255 - (28 * 28 + 28) % 256


def test_nowhere_is_said(nowhere):
    """The error names the places and Debian's package."""
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        open_data("fashion-mnist")


def test_damaged_files_are_named(nowhere):
    """Cut-off files, packed and not."""
    write(nowhere / "debian", packed=True)
    path = nowhere / "debian" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte"):
        open_data("fashion-mnist")
    path.write_bytes(gzip.compress(b"\0\0\x08\x01"))
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte"):
        open_data("fashion-mnist")
