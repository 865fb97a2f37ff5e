"""pytest tests/features/test_embeddings.py"""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vismoe.data import ImageSet, open_data
from vismoe.features import class_names, file_names, open_images, whole, write_embeddings

VECTORS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
FILES, LABELS = ["a.png", "b, with ✓.png", "\udcff.png"], ["cat", "", "cat|dog"]
AS_TEXT = [*FILES[:2], "\\xff.png"]


def test_npy(tmp_path):
    """The array is float32 as it was, the table beside it names each row; nothing else is left."""
    assert write_embeddings(tmp_path / "e.npy", FILES, LABELS, VECTORS) == [tmp_path / "e.csv", tmp_path / "e.npy"]
    found = np.load(tmp_path / "e.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, VECTORS)
    with (tmp_path / "e.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["file", "label"], *map(list, zip(AS_TEXT, LABELS, strict=True))]
    assert len(list(tmp_path.iterdir())) == 2


def test_parquet(tmp_path):
    """The same in one file, each vector a list of one length."""
    parquet = pytest.importorskip("pyarrow.parquet")
    write_embeddings(tmp_path / "e.parquet", FILES, LABELS, VECTORS)
    table = parquet.read_table(tmp_path / "e.parquet")
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<")
    assert str(table.schema.field("embedding").type).endswith("float>[4]")
    assert table.column("file").to_pylist() == AS_TEXT
    assert table.column("label").to_pylist() == LABELS
    np.testing.assert_array_equal(np.array(table.column("embedding").to_pylist(), dtype=np.float32), VECTORS)
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_overwritten(tmp_path):
    """Neither the file nor its table; names without a known format are refused."""
    for name in ("e.npy", "e.csv"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(FileExistsError, match="exists: choose another"):
            write_embeddings(tmp_path / "e.npy", FILES, LABELS, VECTORS)
        assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
        (tmp_path / name).unlink()
    for name, message in (("e.txt", "accepted are .npy and .parquet"), ("gone/e.npy", "no such folder")):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            write_embeddings(tmp_path / name, FILES, LABELS, VECTORS)
    with pytest.raises(ValueError, match="this name is taken by the table"):
        write_embeddings(tmp_path / "e.csv", FILES, LABELS, VECTORS, "npy")


@pytest.mark.parametrize("broken", ["save", "rename"])
def test_nothing_is_half_written(tmp_path, monkeypatch, broken):
    """A disk that is full while either file is written leaves neither."""
    if broken == "save":
        monkeypatch.setattr(np, "save", _full)
    else:
        replace = Path.replace
        monkeypatch.setattr(Path, "replace", lambda self, to: _full() if to.suffix == ".npy" else replace(self, to))
    with pytest.raises(OSError, match="full"):
        write_embeddings(tmp_path / "e.npy", FILES, LABELS, VECTORS)
    assert not list(tmp_path.iterdir())


def _full(*_, **__):
    raise OSError("the disk is full")


def test_names_of_rows(tmp_path):
    """All parts of a set in order, files or numbers, one class or several."""
    data = open_data("digits")
    every = whole(data).val
    assert torch.equal(every.labels, torch.cat([data.train.labels, data.val.labels]))
    assert every.image(1347).tobytes() == data.val.image(0).tobytes()
    assert file_names(every)[:2] == ["0", "1"]
    assert class_names(data.val, data.classes)[0] == str(data.val.labels[0].item())
    several = ImageSet(torch.tensor([[True, True], [False, False]]), lambda index: None, ["a", "b"])
    assert class_names(several, ["red", "round"]) == ["red|round", ""]
    assert file_names(several) == ["a", "b"]
    Image.new("L", (3, 3)).save(tmp_path / "x.png")
    opened = open_images([tmp_path, tmp_path / "x.png"])
    assert list(opened.val.files) == [str(tmp_path / "x.png")] * 2
    assert class_names(opened.val, opened.classes) == ["", ""]
    with pytest.raises(FileNotFoundError, match="no such image or folder"):
        open_images([tmp_path / "gone.png"])
