"""pytest tests/data/test_folders.py: folders of images as sets, and what is wrong with some."""

import pytest
from PIL import Image

from vismoe.data import list_images, open_data


def paint(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)


def test_class_folders_are_for_evaluation_alone(tmp_path):
    """Without train/ and val/ every image is evaluated on, classes in the order of their names."""
    for value, name in ((10, "b/1.png"), (20, "a/1.png"), (30, "a/2.PNG"), (40, "a/deeper/3.bmp")):
        paint(tmp_path / name, value)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    opened = open_data(str(tmp_path))
    assert (opened.train, opened.classes, list(opened.val.labels)) == (None, ["a", "b"], [0, 0, 0, 1])
    assert [opened.val.image(number).getpixel((0, 0)) for number in range(4)] == [20, 30, 40, 10]


def test_hidden_files_and_folders_are_none(tmp_path):
    """What editors and other systems leave behind is no class and no image."""
    paint(tmp_path / "a" / "1.png", 0)
    paint(tmp_path / "a" / "._1.png", 0)
    (tmp_path / ".cache").mkdir()
    opened = open_data(str(tmp_path))
    assert (opened.classes, len(opened.val)) == (["a"], 1)


def test_train_and_val_share_classes_by_name(tmp_path):
    """A val/ that lacks a class keeps train's numbers: class "c" is 2 in both."""
    for name in ("a", "b", "c"):
        paint(tmp_path / "train" / name / "x.png", 0)
    paint(tmp_path / "val" / "c" / "x.png", 7)
    opened = open_data(str(tmp_path))
    assert opened.classes == ["a", "b", "c"]
    assert list(opened.train.labels) == [0, 1, 2]
    assert list(opened.val.labels) == [2]
    assert opened.val.image(0).getpixel((0, 0)) == 7


def test_a_val_class_that_train_lacks_is_an_error(tmp_path):
    """What was never trained on cannot be evaluated: said by name."""
    paint(tmp_path / "train" / "a" / "x.png", 0)
    paint(tmp_path / "val" / "zebra" / "x.png", 0)
    with pytest.raises(ValueError, match=r"classes that .* lacks: zebra"):
        open_data(str(tmp_path))


def test_an_empty_class_folder_is_an_error(tmp_path):
    """A class without images is named, and so are the accepted suffixes."""
    paint(tmp_path / "a" / "x.png", 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in the class folders empty; accepted are .*\.png"):
        open_data(str(tmp_path))


def test_a_folder_of_images_without_classes_is_an_error(tmp_path):
    """Images that lie side by side have no classes."""
    paint(tmp_path / "x.png", 0)
    with pytest.raises(ValueError, match="has no class folders"):
        open_data(str(tmp_path))


@pytest.mark.parametrize("name", ["no/such/folder", "digit"])
def test_a_missing_folder_is_an_error(name):
    """What is neither a set nor a folder is said to be none, with what is accepted."""
    with pytest.raises(
        FileNotFoundError, match='no such folder; accepted are "digits" and "fashion-mnist", and folders of images'
    ):
        open_data(name)


def test_images_are_listed_in_one_order(tmp_path):
    """All image files below a folder, by path, whatever the file system's order; folders named like images are none."""
    for name in ("z.png", "a.jpg", "m/x.tiff"):
        paint(tmp_path / name, 0)
    (tmp_path / "folder.png").mkdir()
    assert [file.relative_to(tmp_path).as_posix() for file in list_images(tmp_path)[0]] == [
        "a.jpg",
        "m/x.tiff",
        "z.png",
    ]
