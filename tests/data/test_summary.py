"""pytest tests/data/test_summary.py: what a set is told to hold, from its files to the lines of a terminal."""

import json

import numpy as np
import pytest
from PIL import Image

from vismoe.data import (
    conflicts,
    find_duplicates,
    fingerprint_all,
    format_imbalance,
    format_summary,
    leakage,
    open_data,
    split_data,
    summarise,
)


def paint(path, seed, size=(48, 40), **options):
    """An image of coarse noise, each seed another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path, **options)


def looked(root):
    data, prints = fingerprint_all(open_data(str(root)), 0.5)
    return data, find_duplicates(prints)


@pytest.fixture
def own_split(tmp_path):
    """A set of its own split, with a near copy on both sides, an image in two classes, and a broken file."""
    for number in range(3):
        paint(tmp_path / "train" / "cat" / f"{number}.png", number)
    paint(tmp_path / "train" / "dog" / "0.png", 10, (64, 56))
    paint(tmp_path / "train" / "dog" / "twin.bmp", 1)
    paint(tmp_path / "val" / "cat" / "0.png", 20)
    paint(tmp_path / "val" / "cat" / "again.jpg", 2, quality=60)
    (tmp_path / "val" / "cat" / "broken.png").write_bytes(b"hello")
    return tmp_path


def test_a_set_of_its_own_split(own_split):
    """Every figure, by hand."""
    data, duplicates = looked(own_split)
    assert leakage(data, duplicates) == [(1, 2)]
    assert conflicts(data, duplicates) == [(1, 4)]
    summary = summarise(data, duplicates)
    assert summary == json.loads(json.dumps(summary))
    assert summary == {
        "name": str(own_split),
        "images": {"train": 5, "test": 2},
        "multi_label": False,
        "classes": [{"name": "cat", "train": 3, "test": 2}, {"name": "dog", "train": 2, "test": 0}],
        "imbalance": 2.5,
        "width": {"min": 48, "median": 48, "max": 64},
        "height": {"min": 40, "median": 40, "max": 56},
        "grey": 0.0,
        "transparent": 0.0,
        "left_out": [{"file": "val/cat/broken.png", "reason": "not an image of a known format"}],
        "notes": [],
        "duplicate_groups": 2,
        "exact_duplicates": [["train/cat/1.png", "train/dog/twin.bmp"]],
        "near_duplicates": [["train/cat/2.png", "val/cat/again.jpg"]],
        "leaks": [{"test": "val/cat/again.jpg", "train": "train/cat/2.png"}],
        "conflicts": [{"files": ["train/cat/1.png", "train/dog/twin.bmp"], "labels": [["cat"], ["dog"]]}],
    }


def test_what_the_terminal_is_told(own_split):
    """In a few lines, what is wrong by name."""
    assert format_summary(summarise(*looked(own_split))).split("\n") == [
        f"{own_split}: 7 images, 5 to train and validate on, 2 test images",
        "2 classes: cat 3 + 2, dog 2 + 0; the largest class is 2.5 times the smallest",
        "48 to 64 (median 48) wide, 40 to 56 (median 40) high; 0% grey, 0% transparent",
        "left out: 1 file: val/cat/broken.png (not an image of a known format)",
        "duplicates: 1 exact, 1 near, in 2 groups: train/cat/1.png = train/dog/twin.bmp, "
        "train/cat/2.png ≈ val/cat/again.jpg",
        "classes without test images: dog (too few images that are not copies)",
        "warning: the test split has only the class cat: its metrics say nothing about the others",
        "test images with copies among the training images (metrics would be too good): 1: "
        "val/cat/again.jpg ≈ train/cat/2.png",
        "copies with different labels: 1: train/cat/1.png (cat) = train/dog/twin.bmp (dog)",
    ]


def test_words_and_whole_pixels(tmp_path):
    """Of classes of one size no ratio is told; a median between two widths is a whole number of pixels."""
    for number, name in enumerate(("cat", "dog")):
        paint(tmp_path / name / "0.png", number, (40 + 5 * number, 30))
    summary = summarise(*looked(tmp_path))
    assert summary["width"] == {"min": 40, "median": 42, "max": 45}
    assert "2 classes: cat 0 + 1, dog 0 + 1; classes are balanced\n" in format_summary(summary)
    assert format_imbalance({"imbalance": 1.004}) == "classes are balanced"
    assert format_imbalance({"imbalance": 1.25}) == "the largest class is 1.25 times the smallest"


@pytest.mark.parametrize("seed", range(3))
def test_what_is_held_out_of_one_piece_does_not_leak(tmp_path, seed):
    """Copies stay together, fingerprints follow their images, a class of copies alone is trained on."""
    for number in range(8):
        paint(tmp_path / "cat" / f"{number}.png", number)
        paint(tmp_path / "cat" / f"{number} small.jpg", number, (24, 20), quality=90, subsampling=0)
    for number in range(4):
        paint(tmp_path / "dog" / f"{number}.png", 99)
    whole, duplicates = looked(tmp_path)
    assert whole.train is None
    data, duplicates = split_data(whole, duplicates, seed)
    assert leakage(data, duplicates) == []
    summary = summarise(data, duplicates)
    assert summary["classes"] == [
        {"name": "cat", "train": 12, "test": 4},
        {"name": "dog", "train": 4, "test": 0},
    ]
    assert summary["duplicate_groups"] == 9
    assert all(
        a.split()[0].removesuffix(".png") == b.split()[0].removesuffix(".png") for a, b in summary["near_duplicates"]
    )
    assert "classes without test images: dog" in format_summary(summary)


def test_several_labels_and_no_files(tmp_path):
    """Labels in other orders are no conflict; of a set without files, images are named by part and number."""
    for number in range(4):
        paint(tmp_path / f"{number}.png", number // 2)
    (tmp_path / "metadata.csv").write_text("file_name,labels\n0.png,a|b\n1.png,b|a\n2.png,a\n3.png,\n")
    data, duplicates = looked(tmp_path)
    summary = summarise(data, duplicates)
    assert summary["conflicts"] == [{"files": ["2.png", "3.png"], "labels": [["a"], []]}]
    assert [entry["test"] for entry in summary["classes"]] == [3, 2]
    assert "3.png (no label)" in format_summary(summary)
    digits = open_data("digits")
    _, prints = fingerprint_all(digits, 0.0)
    twice = find_duplicates([*prints[:-1], prints[0]])
    summary = summarise(digits, twice)
    assert summary["exact_duplicates"] == [["train 0", "test 449"]]
    assert summary["grey"] == 1.0
    with pytest.raises(ValueError, match="duplicates of 1796 images, but digits has 1797"):
        summarise(digits, find_duplicates(prints[1:]))


def test_a_class_that_cannot_be_read_is_an_error(tmp_path):
    """A class without an image is not trained on in silence."""
    for number in range(4):
        paint(tmp_path / "cat" / f"{number}.png", number)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "0.png").write_bytes(b"hello")
    with pytest.raises(ValueError, match="no readable images of dog"):
        split_data(*looked(tmp_path), 0)
