"""pytest tests/adapt/test_own_splits.py: finetune on a folder that has its own splits."""

import numpy as np
import pytest
from PIL import Image

from vismoe.adapt.splits import open_splits


def lay(root, *folders, images=6):
    """Folders of so many images each, no two of them copies."""
    random = np.random.default_rng(0)
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range(images):
            Image.fromarray(random.integers(0, 255, (8, 8, 3)).astype(np.uint8)).save(root / folder / f"{number}.png")


def copy(root, source, target):
    """A copy of an image's file."""
    (root / target).write_bytes((root / source).read_bytes())


@pytest.fixture
def root(tmp_path):
    """train/, val/ and test/ of two classes."""
    lay(tmp_path, *(f"{split}/{name}" for split in ("train", "val", "test") for name in ("cat", "dog")))
    return tmp_path


def folders(images):
    return sorted({file.split("/")[0] for file in images.files})


def test_all_three_splits_are_kept(root):
    """train/ trains, val/ chooses, test/ is reported: neither is split anew, and none is passed over."""
    splits = open_splits(str(root), 0, 0.1)
    assert folders(splits.fitting.train_and_val[0]) == ["train"]
    assert folders(splits.fitting.val) == ["val"]
    assert folders(splits.test.val) == ["test"]
    assert (splits.validated, splits.dropped) == (True, 0)
    assert [len(splits.fitting.train_and_val[0]), len(splits.fitting.val), len(splits.test.val)] == [12, 12, 12]
    assert {file.split("/")[0] + split for file, split in splits.rows} == {"traintrain", "valvalidation", "testtest"}


def test_copies_of_other_splits_are_not_trained_on(root):
    """An image of test/ that is in train/ or val/ too is only tested on; one of val/ that is in train/ is not trained
    on; how many are left out is said."""
    copy(root, "test/cat/0.png", "train/cat/6.png")
    copy(root, "test/cat/1.png", "val/cat/6.png")
    copy(root, "val/dog/0.png", "train/dog/6.png")
    splits = open_splits(str(root), 0, 0.1)
    assert [len(splits.fitting.train_and_val[0]), len(splits.fitting.val), len(splits.test.val)] == [12, 12, 12]
    assert splits.dropped == 3
    assert "12 training (3 more are left out: their copies are in another split)" in splits.sizes


def test_a_class_that_is_all_copies_is_an_error(root):
    """A class of which nothing is left to train on is named, and why."""
    for number in range(6):
        copy(root, f"val/dog/{number}.png", f"train/dog/{number}.png")
    with pytest.raises(
        ValueError, match=r"copies of other splits' images no training images are left in the classes dog$"
    ):
        open_splits(str(root), 0, 0.1)
