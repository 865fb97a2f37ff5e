"""pytest tests/data/test_split.py: the part that is held out of a folder that comes in one piece."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from vismoe.data import Data, ImageSet, list_folder, open_data, sets
from vismoe.data.splits.folder_split import draw_of_each_class


def lay(root, **classes):
    """Class folders of so many image files; nothing is decoded here, so they may be empty."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").touch()


def lay_combinations(root, *cells):
    """An image file for each cell of labels."""
    for number in range(len(cells)):
        (root / f"{number}.png").touch()
    lines = [f"{number}.png,{cell}" for number, cell in enumerate(cells)]
    (root / "metadata.csv").write_text("\n".join(["file_name,labels", *lines]))


def held_out(root, seed):
    return set(open_data(str(root), seed).val.files)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_quarter_of_each_class_is_held_out(tmp_path, seed):
    """The share is that of every class, and each image is in one part."""
    lay(tmp_path, a=40, b=20, c=8)
    opened = open_data(str(tmp_path), seed)
    assert opened.val.labels.bincount().tolist() == [10, 5, 2]
    assert opened.train.labels.bincount().tolist() == [30, 15, 6]
    assert len({*opened.train.files, *opened.val.files}) == 68


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 9, 11])
def test_a_class_of_two_or_more_is_on_both_sides(tmp_path, count):
    """However few there are, one is trained and one evaluated on; otherwise a quarter, to the nearest image."""
    lay(tmp_path, a=count, b=4)
    opened = open_data(str(tmp_path), 0)
    trained, evaluated = (int((split.labels == 0).sum()) for split in opened.train_and_val)
    assert trained + evaluated == count
    assert 1 <= evaluated <= max(1, count / 4 + 0.5)
    assert evaluated >= count / 4 - 0.5


@pytest.mark.parametrize("seed", range(8))
def test_a_class_of_one_image_is_trained_on(tmp_path, seed):
    """What was never trained on could not be recognised."""
    lay(tmp_path, a=4, single=1)
    opened = open_data(str(tmp_path), seed)
    assert (opened.classes, opened.train.labels.bincount().tolist()) == (["a", "single"], [3, 1])
    assert opened.val.labels.tolist() == [0]


def test_the_seed_decides(tmp_path):
    """The same seed holds out the same files; no two of seven seeds choose the same of 15,504² ways."""
    lay(tmp_path, a=20, b=20)
    assert held_out(tmp_path, 3) == held_out(tmp_path, 3)
    assert len({frozenset(held_out(tmp_path, seed)) for seed in range(7)}) == 7


def test_classes_are_drawn_apart(tmp_path):
    """Classes of one size do not hold out the same numbers: files may be numbered in an order that means something."""
    lay(tmp_path, a=20, b=20)
    chosen = [{Path(file).name for file in held_out(tmp_path, 0) if file.startswith(name)} for name in "ab"]
    assert chosen[0] != chosen[1]


def test_the_order_of_the_file_system_does_not_matter(tmp_path, monkeypatch):
    """A disk that lists files the other way round gives the same parts, in the same order."""
    lay(tmp_path, a=12, b=9, c=1)
    before = open_data(str(tmp_path), 5)
    walk, iterdir = os.walk, Path.iterdir

    def backwards(*args, **options):
        for folder, folders, files in walk(*args, **options):
            folders.sort(reverse=True)
            yield folder, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(iterdir(path), reverse=True)))
    after = open_data(str(tmp_path), 5)
    assert [split.files for split in before.train_and_val] == [split.files for split in after.train_and_val]
    assert [split.labels.tolist() for split in before.train_and_val] == [
        split.labels.tolist() for split in after.train_and_val
    ]


def test_the_order_of_metadata_does_not_matter(tmp_path):
    """Other orders of the lines of a table, and of the labels in a cell, do not change the split."""
    lay_combinations(tmp_path, *["a", "b", "a|b"] * 4)
    before, table = held_out(tmp_path, 5), tmp_path / "metadata.csv"
    header, *lines = table.read_text().split("\n")
    table.write_text("\n".join([header, *reversed(lines)]).replace("a|b", "b|a"))
    assert held_out(tmp_path, 5) == before


@pytest.mark.parametrize("name", ["0 first", "between", "z last"])
def test_a_new_class_leaves_the_others_split_as_they_were(tmp_path, name):
    """Images of a new class, before, between or after the others, do not move theirs from one part to the other."""
    lay(tmp_path, a=12, c=9)
    before = held_out(tmp_path, 0)
    lay(tmp_path, **{name: 10})
    assert {file for file in held_out(tmp_path, 0) if not file.startswith(f"{name}/")} == before


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_combinations_of_labels_are_split_as_classes_are(tmp_path, seed):
    """Of each combination a quarter is held out, of images with no label too; the order in a cell is none."""
    lay_combinations(tmp_path, *["a|b", "b|a"] * 2, *["a"] * 8, *[""] * 4)
    opened = open_data(str(tmp_path), seed)
    assert Counter(map(tuple, opened.val.labels.tolist())) == {(True, True): 1, (True, False): 2, (False, False): 1}
    assert Counter(map(tuple, opened.train.labels.tolist())) == {(True, True): 3, (True, False): 6, (False, False): 3}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_combinations_that_occur_once_are_split_together(tmp_path, seed):
    """Where most combinations are unique, as labels often are, a quarter is held out all the same."""
    names = "abcdef"
    pairs = [f"{one}|{other}" for one in names for other in names if one < other]
    lay_combinations(tmp_path, *pairs, "a|b|c")
    opened = open_data(str(tmp_path), seed)
    assert [len(split) for split in opened.train_and_val] == [12, 4]


@pytest.mark.parametrize("seed", range(4))
def test_a_single_combination_that_occurs_once_is_trained_on(tmp_path, seed):
    """As a class of one image is: its labels may occur nowhere else."""
    lay_combinations(tmp_path, *["a"] * 4, "b|c")
    assert "4.png" in open_data(str(tmp_path), seed).train.files


@pytest.mark.parametrize("classes", [{"a": 1}, {"a": 1, "b": 1, "c": 1}])
def test_nothing_to_hold_out_is_an_error(tmp_path, classes):
    """One image of each class cannot be both trained and evaluated on."""
    lay(tmp_path, **classes)
    with pytest.raises(ValueError, match=r"no class has two images.*expected at least two of a class"):
        open_data(str(tmp_path), 0)


def test_without_a_seed_nothing_is_held_out(tmp_path):
    """All is for evaluation, one image of a class too."""
    lay(tmp_path, a=4, b=1)
    opened = open_data(str(tmp_path))
    assert (opened.train, opened.val.labels.tolist()) == (None, [0, 0, 0, 0, 1])


def test_no_label_is_lost_to_training():
    """Of chained pairs of labels, eight images and nine labels, each stays on one at least that is trained on."""
    labels = [*((f"c{n}", f"c{n + 1}") for n in range(8)), ("a",), ("a", "z"), ("b", "z")]
    for seed in range(20):
        drawn = draw_of_each_class(labels, seed, 0.5)
        trained = {name for number, names in enumerate(labels) for name in names if number not in drawn}
        assert trained == {name for names in labels for name in names}
        assert drawn


def test_a_folder_is_listed_once(tmp_path, monkeypatch):
    """Many files on a slow disk are listed once to open a folder and split it, and once for a folder of `val/` alone,
    which is not split."""
    listed = []
    monkeypatch.setattr(sets, "list_folder", lambda root: listed.append(root) or list_folder(root))
    lay(tmp_path / "whole", a=4, b=4)
    lay(tmp_path / "evaluated" / "val", a=4, b=4)
    for name, is_split in (("whole", True), ("evaluated", False)):
        assert (open_data(str(tmp_path / name), 0).train is not None) == is_split
    assert listed == [tmp_path / "whole", tmp_path / "evaluated"]


def test_a_validation_split_has_images_of_its_own():
    """One whose images are all trained on is none, whether the images have files or not, and however often each is
    trained on; without a training split all images are for evaluation."""
    images = ImageSet(torch.arange(4) % 2, lambda index: None, list("abcd"))
    nameless = ImageSet(torch.arange(4) % 2, lambda index: None)

    def has_validation(train, val):
        return Data("set", ["x", "y"], train, val).has_validation

    assert has_validation(images.subset([0, 1]), images.subset([2, 3]))
    assert has_validation(images.subset([0, 1]), images.subset([1, 2]))
    assert not has_validation(images.subset([0, 1, 2, 3, 0, 1]), images.subset([0, 3]))
    assert has_validation(nameless.subset([0, 1]), nameless.subset([2, 3]))
    assert not has_validation(nameless, nameless)
    assert has_validation(None, images)
